"""As many replicas as visitors who wait want, on a real Ray of this machine; and a cluster that is there already."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.server.hosts.replicas import asked, is_as_alone, is_replica, replica_processes, until
from tests.serving import free_port
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.errors import UserError
from vtw_demo.server.engine import Engine
from vtw_demo.server.hosts import chosen_host

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


def test_replicas_come_with_those_who_wait_and_go_again(choice, tmp_path, query, alone):
    several = chosen_host("1:2", None)
    with closing(several):
        engine = Engine(several.load(choice, lambda progress: None), CalibrationStore(tmp_path), host=several)
        assert len(replica_processes()) == 1
        over = threading.Event()

        def ask(visitor):
            while not over.is_set():
                assert is_as_alone(list(asked(engine, query, visitor))[-1], alone)

        with ThreadPoolExecutor(4) as visitors:
            visits = [visitors.submit(ask, visitor) for visitor in "abcd"]
            try:
                until(lambda: len(replica_processes()) == 2)
            finally:
                over.set()
            for visit in visits:
                visit.result()
        until(lambda: len(replica_processes()) == 1)
        assert is_as_alone(list(asked(engine, query))[-1], alone)


@pytest.fixture
def cluster(monkeypatch):
    """One that asks for a token, and its address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    port, ray = free_port(), str(Path(sys.executable).with_name("ray"))
    started = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(started, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}, **quiet)
    yield process, f"127.0.0.1:{port}"
    left = psutil.Process(process.pid).children(recursive=True)
    process.kill()  # asked to end, it would take half a minute
    process.wait()
    for child in psutil.wait_procs(left, 0)[1]:
        child.kill()


@pytest.mark.nightly
def test_a_cluster_that_is_there_is_joined_and_left_as_it_was(cluster, choice, tmp_path, query, alone):
    process, address = cluster
    host = until(lambda: joined(address))
    with closing(host):
        engine = Engine(host.load(choice, lambda progress: None), CalibrationStore(tmp_path), host=host)
        assert is_as_alone(list(asked(engine, query))[-1], alone)
        assert len(replicas_of(process)) == 2
    until(lambda: not replicas_of(process))
    assert "raylet" in {child.name() for child in psutil.Process(process.pid).children(recursive=True)}


def joined(address):
    try:
        return chosen_host("2", address)
    except UserError:
        return None


def replicas_of(process):
    return [child for child in psutil.Process(process.pid).children(recursive=True) if is_replica(child)]
