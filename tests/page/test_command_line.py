import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving import started
from vtw_demo.page.command_line import build_parser, main

ROOT = Path(__file__).parents[2]


def test_help_names_every_option():
    shown = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout  # fmt: skip
    for option in (
        "--model",
        "--revision",
        "--quantization",
        "--quantize-all",
        "--device",
        "--host",
        "--port",
        "--share",
        "--layer",
    ):
        assert option in shown


def test_which_model_runs_and_why_is_said_in_one_line(caplog):
    caplog.set_level("INFO", "vtw_demo")
    for arguments, expected in (
        (["--device", "cpu"], "Running embedded. "),
        (["--device", "cpu", "--model", "embedded", "--quantization", "none"], "Nothing is quantized: all weights"),
        (["--device", "cpu", "--model", "embedded"], "Running embedded. "),
    ):
        caplog.clear()
        assert main([*arguments, "--layer", "99"]) == 2
        (said,) = [record.getMessage() for record in caplog.records if record.name == "vtw_demo.page.command_line"]
        assert expected in said
        assert "\n" not in said


def test_what_is_not_asked_for_has_a_default():
    options = build_parser().parse_args([])
    assert (options.model, options.share, options.layer, options.port) == (None, False, None, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "99"], "13"),
        (["--layer", "0"], "leave the picture out"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--device", "abacus"], "abacus"),
        (["--host", "no.such.host.invalid"], "isn't known"),
        (["--host", "192.0.2.1"], "this machine's"),
        (["--port", "70000"], "from 0 to 65535; this is '70000'"),
        (["--port", "-1"], "from 0 to 65535; this is '-1'"),
        (["--port", "http"], "this is 'http'"),
        (["--replicas", "0"], "a number from 1 on, or fewest and most as in 1:4; this is '0'"),
        (["--replicas", "4:2"], "this is '4:2'"),
        (["--replicas", "two"], "this is 'two'"),
        (["--ray", "auto"], "--ray auto (or VTW_RAY_ADDRESS) is where replicas are: add --replicas 2"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_sentence(arguments, expected, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "VTW Demo can't start:" in error
    assert expected in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("GRADIO_SERVER_NAME", "no.such.host.invalid", "isn't known"),
        ("GRADIO_SERVER_PORT", "http", "(--port or GRADIO_SERVER_PORT) must be a whole number"),
        ("GRADIO_SERVER_PORT", "70000", "this is '70000'"),
        ("GRADIO_NUM_PORTS", "none", "GRADIO_NUM_PORTS must be a whole number"),
        ("GRADIO_ROOT_PATH", "demo", "GRADIO_ROOT_PATH must be a path"),
        ("GRADIO_SHARE", "perhaps", "GRADIO_SHARE must be 1 or 0"),
        ("GRADIO_TEMP_DIR", "/etc/hostname", "(GRADIO_TEMP_DIR) no uploads can be kept: File exists"),
        ("GRADIO_TEMP_DIR", "/proc/uploads", "(GRADIO_TEMP_DIR) no uploads can be kept"),
        ("VTW_MODEL_SWITCHING", "maybe", "VTW_MODEL_SWITCHING must be 1 or 0"),
        ("VTW_LOG_QUESTIONS", "2", "VTW_LOG_QUESTIONS must be 1 or 0"),
        ("VTW_QUANTIZE_ALL", "all", "VTW_QUANTIZE_ALL must be 1 or 0"),
        ("VTW_QUANTIZATION", "5bit", "Unknown quantization '5bit'"),
        ("VTW_DEVICE", "abacus", "abacus"),
        ("VTW_AUTH", "nobody", "user:password"),
        ("VTW_REPLICAS", "1:", "this is '1:'"),
        ("VTW_RAY_ADDRESS", "auto", "add --replicas 2"),
    ],
)
def test_what_is_wrong_with_a_variable_is_said_in_a_sentence(variable, value, expected, capsys, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert main(["--device", "cpu", "--model", "no/such/folder"][: None if variable != "VTW_DEVICE" else 0]) == 2
    error = capsys.readouterr().err
    assert error.count("VTW Demo can't start:") == 1
    assert expected in error
    assert "Traceback" not in error


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_replicas_say_how_to_install_it(capsys):
    assert main(["--replicas", "2"]) == 2
    assert "Replicas run on Ray, which isn't installed: `pip install 'ray[serve]'`." in capsys.readouterr().err


def test_a_port_in_use_is_told_before_a_model_is_loaded(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        monkeypatch.setenv("GRADIO_SERVER_PORT", port)
        for arguments in ([], ["--port", port], ["--host", "0.0.0.0"]):
            assert main(["--model", "no/such/folder", *arguments]) == 2
            assert f"port {port}: Address already in use" in capsys.readouterr().err


def test_gradios_variables_that_are_wrong_do_not_end_it_in_its_import():
    told = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"GRADIO_SERVER_PORT": "http", "GRADIO_NUM_PORTS": "", "GRADIO_NODE_NUM_PORTS": "x"},
    )  # fmt: skip
    assert told.returncode == 2
    assert "this is 'http'" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_it_serves_all_addresses_whatever_else_is_set(small_folder, tmp_path):
    variables = {
        "GRADIO_DEBUG": "1", "GRADIO_NUM_WORKERS": "2", "GRADIO_DEFAULT_CONCURRENCY_LIMIT": "x", "GRADIO_SSR_MODE": "1",
        "GRADIO_ANALYTICS_MAX_EVENTS": "x", "GRADIO_MCP_SERVER": "0", "GRADIO_HEARTBEAT_INTERVAL": "x",
        "GRADIO_SERVER_NAME": "::", "GRADIO_SERVER_PORT": "1", "HTTP_PROXY": "http://127.0.0.1:9",
        "GRADIO_ALLOWED_PATHS": "/etc", "GRADIO_ROOT_PATH": "/demo",
    }  # fmt: skip
    with started(tmp_path, "--model", small_folder, **variables) as (url, process, log):
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert httpx.get(f"http://{host}:{port}/health", trust_env=False).json() == {"status": "ready"}
        assert httpx.get(f"{url}/gradio_api/file=/etc/passwd", trust_env=False).status_code == 403
        running = psutil.Process(process.pid)
        assert not running.children()
        listened = {found.laddr.port for found in running.net_connections() if found.status == "LISTEN"}
        assert listened == {int(port)}
    assert process.returncode == 0
    said = log.read_text()
    assert f"Running on local URL:  http://localhost:{port}" in said
    assert "Not used by this page: GRADIO_ALLOWED_PATHS" in said
    assert "Traceback" not in said
