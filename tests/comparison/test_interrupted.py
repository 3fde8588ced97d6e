"""What is left when a process is killed at its worst moment, a disk is full, or the server is told to end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import handle_file

from tests.serving import free_port
from vtw_demo.__main__ import main
from vtw_demo.benchmark.visitors import FailedError, QueueFullError, Request, call_on_page, compare, connect
from vtw_demo.comparison.calibration import CalibrationStore, calibrate
from vtw_demo.comparison.samples import read_samples
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.files import write_whole
from vtw_demo.models.loading import EMBEDDED_FOLDER

ROOT = Path(__file__).parents[2]
SAMPLES = 6
DISK = 256 * 1024
ANSWER_TOKENS = 512
# Runs a command until it is about to write, or to rename, a file of such a name for the nth time: there it is killed,
# or has no more room.
UNTIL = """
import os, resource, signal, sys

what, name, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0

def watch(event, arguments):
    global seen
    if event != ("os.rename" if what == "before it is renamed" else "open") or name not in str(arguments[0]):
        return
    if event == "open" and not arguments[2] & os.O_WRONLY:
        return
    seen += 1
    if seen != nth:
        return
    if what in ("half-way", "no more room"):
        written = os.path.getsize(arguments[0]) if os.path.exists(arguments[0]) else 0
        if what == "half-way":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from vtw_demo.__main__ import main
sys.exit(main(sys.argv[4:]))
"""


def until(what, name, nth, *command, cache):
    return subprocess.run(
        [sys.executable, "-c", UNTIL, what, name, str(nth), *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "BROWSER_PATH": "/no/such/browser"},
    )  # fmt: skip


def killed(what, name, nth, *command, cache):
    done = until(what, name, nth, *command, cache=cache)
    assert done.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), done.stderr


@contextmanager
def running(*command, **environment):
    process = psutil.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.is_running():
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("data"), random.Random(8)
    rows = []
    for number in range(SAMPLES):
        draw(random_scene(generator, 2)).save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "question": "What do you see?"}))
    (folder / "data.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(vlm, data):
    samples, _ = read_samples(data, SAMPLES)
    *_, calibration = calibrate(vlm, samples)
    return {sample.fingerprint: m for sample, m in zip(samples, calibration.measurements, strict=True)}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={DISK}", "none", folder]).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder, room=0):
    """Leave so many bytes of a small disk."""
    with (folder / "filler").open("wb", buffering=0) as file:
        while shutil.disk_usage(folder).free:
            file.write(bytes(4096))
        file.truncate(file.tell() - room)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "filler")


def store_in(cache, vlm):
    return CalibrationStore.of(vlm, cache / "vtw-demo" / "calibrations")


def check_kept(store, uninterrupted):
    """Whatever is read of the store is what an uninterrupted calibration measures; the result is how many samples."""
    kept = store.measurements(11)
    for sample, measurement in kept.items():
        assert measurement.kl == pytest.approx(uninterrupted[sample].kl, rel=1e-3, abs=1e-5)
    return len(kept)


def check_finished(store, uninterrupted):
    assert check_kept(store, uninterrupted) == SAMPLES
    result = store.result()
    for measurement, expected in zip(result.measurements, uninterrupted.values(), strict=True):
        assert measurement.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-5)


def test_a_calibration_killed_while_it_writes_goes_on(vlm, data, uninterrupted, tmp_path):
    command, store = ("calibrate", "--data", data, "--device", "cpu"), store_in(tmp_path, vlm)
    for what, name, nth, left in (
        ("half-way", "measurements.jsonl", 2, 1),
        ("before it is written", "measurements.jsonl", 1, 1),
        ("half-way", "measurements.jsonl", 3, 3),
        ("half-way", ".calibration.json", 1, SAMPLES),
        ("before it is renamed", ".calibration.json", 1, SAMPLES),
    ):
        killed(what, name, nth, *command, cache=tmp_path)
        assert check_kept(store, uninterrupted) == left, (what, name)
        assert store.result() is None
    lines = (store.folder / "measurements.jsonl").read_text().count('"sample"')
    with running("-m", "vtw_demo", *command, XDG_CACHE_HOME=tmp_path) as process:
        output = process.stdout.read().decode()
        assert process.wait() == 0, output
    check_finished(store, uninterrupted)
    assert (store.folder / "measurements.jsonl").read_text().count('"sample"') == lines


def test_a_calibration_killed_at_any_moment_goes_on(vlm, data, uninterrupted, tmp_path):
    store, generator, before = store_in(tmp_path, vlm), random.Random(), 0
    command = ("-m", "vtw_demo", "calibrate", "--data", data, "--device", "cpu")
    for _ in range(3):
        with running(*command, XDG_CACHE_HOME=tmp_path) as process:
            while b"calibrating" not in process.stdout.readline() and process.poll() is None:
                pass
            time.sleep(generator.uniform(0, 1))
            process.kill()
        kept = check_kept(store, uninterrupted)
        assert kept >= before
        before = kept
    with running(*command, XDG_CACHE_HOME=tmp_path) as process:
        assert process.wait() == 0
    check_finished(store, uninterrupted)


def test_two_calibrations_at_once(vlm, data, uninterrupted, tmp_path):
    command = ("-m", "vtw_demo", "calibrate", "--data", data, "--device", "cpu")
    with running(*command, XDG_CACHE_HOME=tmp_path) as one, running(*command, XDG_CACHE_HOME=tmp_path) as other:
        outputs = [process.communicate()[0].decode() for process in (one, other)]
        assert [one.wait(), other.wait()] == [0, 0], outputs
    store = store_in(tmp_path, vlm)
    check_finished(store, uninterrupted)
    for line in (store.folder / "measurements.jsonl").read_text().split("\n"):
        assert not line or json.loads(line)["sample"] in uninterrupted


@pytest.mark.parametrize("what", ["before it is written", "half-way", "before it is renamed"])
def test_an_export_killed_while_it_is_written_leaves_the_old_file(what, data, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("old")
    asked = ("--image", data / "0.png", "--question", "What?", "--layer", "6", "--device", "cpu", "--report", report)
    killed(what, ".report.html", 1, "compare", *asked, cache=tmp_path / "cache")
    assert report.read_text() == "old"


def test_a_benchmark_killed_while_it_is_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("{}")
    asked = ("--model", "embedded", "--device", "cpu", "--layers", "6", "--new-tokens", "2", "--rounds", "1")
    killed("half-way", ".bench.json", 1, "bench", *asked, "--no-overheads", "--json", file, cache=tmp_path / "cache")
    assert file.read_text() == "{}"


def test_a_disk_quota_is_said_and_leaves_the_old_file(data, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("old")
    asked = ("--image", data / "0.png", "--question", "What?", "--layer", "6", "--device", "cpu", "--report", report)
    done = until("no more room", ".report.html", 1, "compare", *asked, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert f"error: {report} can't be written: File too large.\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "every layer sees the picture:" in done.stdout
    assert (report.read_text(), names(tmp_path)) == ("old", ["cache", "report.html"])


def test_exports_to_a_full_disk(data, small_disk, capsys):
    (small_disk / "out.html").write_text("old")
    asked = ["--image", str(data / "0.png"), "--question", "What?", "--layer", "6", "--device", "cpu"]
    assert main(["compare", *asked, "--report", str(small_disk / "out.html")]) == 2
    said = capsys.readouterr()
    assert f"error: {small_disk / 'out.html'} can't be written: No space left on device.\n" in said.err
    assert "every layer sees the picture:" in said.out
    assert ((small_disk / "out.html").read_text(), names(small_disk)) == ("old", ["out.html"])
    bench = ["bench", "--model", "embedded", "--device", "cpu", "--layers", "6", "--new-tokens", "2", "--rounds", "1"]
    fill(small_disk)
    assert main([*bench, "--no-overheads", "--json", str(small_disk / "out.html")]) == 2
    said = capsys.readouterr()
    assert "can't be written: No space left on device.\n" in said.err
    assert "| withdrawn at 6 |" in said.out
    assert ((small_disk / "out.html").read_text(), names(small_disk)) == ("old", ["out.html"])


def test_a_calibration_whose_cache_is_full_gives_its_result_and_says_so(
    vlm, data, uninterrupted, small_disk, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    store, out = store_in(small_disk, vlm), tmp_path / "out"
    command = ["calibrate", "--data", str(data), "--device", "cpu", "--out", str(out)]
    store.folder.mkdir(parents=True)
    store.result_file.write_text("{}")
    (store.folder / "measurements.jsonl").write_text("")
    fill(small_disk, room=4096)
    # One block is left: the measurements fit into it, the result doesn't any more.
    assert main(command) == 2
    said = capsys.readouterr()
    assert f"error: What was measured can't be kept in {store.folder}: " in said.err
    assert "No space left on device" in said.err
    assert "Traceback" not in said.err
    assert f"on {SAMPLES} samples" in said.out
    assert len(json.loads((out / "calibration.json").read_text())["measurements"]) == SAMPLES
    assert names(store.folder) == ["calibration.json", "measurements.jsonl"]
    assert store.result_file.read_text() == "{}"
    check_kept(store, uninterrupted)
    (small_disk / "filler").unlink()
    assert main(command) == 0
    check_finished(store, uninterrupted)


def test_a_calibration_without_any_room_is_whole_all_the_same(vlm, data, uninterrupted, small_disk):
    fill(small_disk)
    store = store_in(small_disk, vlm)
    samples, _ = read_samples(data, SAMPLES)
    *_, calibration = calibrate(vlm, samples, store=store)
    assert len(calibration.measurements) == SAMPLES
    assert "No space left on device" in store.problem
    assert store.result() is None
    (small_disk / "filler").unlink()
    *_, again = calibrate(vlm, samples, store=store)
    assert again.mean == pytest.approx(calibration.mean, rel=1e-3, abs=1e-5)
    assert store.problem is None


def test_what_is_no_file_is_written_to_and_links_stay_links(tmp_path):
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    assert names(tmp_path) == ["link", "pipe", "target"]


@pytest.fixture
def picture_file(tmp_path):
    draw(random_scene(random.Random(5), 3)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@contextmanager
def served(*arguments, **environment):
    """The page's process and address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("app.py", "--host", "127.0.0.1", "--port", port, "--device", "cpu", *arguments)
    with running(*command, **environment) as process:
        for _ in range(600):
            assert process.poll() is None, process.stdout.read().decode()
            try:
                httpx.get(f"{url}/config", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield process, url


@pytest.fixture
def endless(tmp_path):
    """The embedded model, which now never ends an answer by itself."""
    folder = tmp_path / "endless"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        for part in (settings, settings.get("text_config", {})):
            part["eos_token_id"] = None
        (folder / name).write_text(json.dumps(settings))
    return folder


def test_sigterm_in_the_middle_of_a_long_answer(endless, picture_file, tmp_path):
    request = Request(picture_file, "What do you see?", 6, ANSWER_TOKENS)
    with (
        served("--model", endless, XDG_CACHE_HOME=tmp_path, GRADIO_TEMP_DIR=tmp_path / "uploads") as (process, url),
        ThreadPoolExecutor(4) as pool,
    ):
        first = compare(connect(url), request)
        assert len(first["full"]["tokens"]) == ANSWER_TOKENS
        visitors = [connect(url) for _ in range(4)]
        asked = [pool.submit(compare, visitor, request) for visitor in visitors]
        time.sleep(0.2 + first["full"]["total_ms"] / 2e3)
        assert not any(task.done() for task in asked)
        children, begun = process.children(recursive=True), time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, took = process.wait(30), time.monotonic() - begun
        output = process.stdout.read().decode()
        assert code == 0, output
        assert took < 10
        assert "Traceback" not in output
        answers = [task.exception() or task.result() for task in asked]
    assert not any(child.is_running() for child in children)
    # Nobody was told that an answer cut short is a whole one.
    for answer in answers:
        assert isinstance(answer, FailedError | QueueFullError) or (
            len(answer["full"]["tokens"]) == len(answer["withdrawn"]["tokens"]) == ANSWER_TOKENS
        )
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_the_page_says_that_a_calibration_cannot_be_kept(small_disk, picture_file, tmp_path):
    fill(small_disk)
    typed = {"question": "What do you see?", "layer": 6, "max-new-tokens": 4, "threshold": 9}
    with served(XDG_CACHE_HOME=small_disk, GRADIO_TEMP_DIR=tmp_path / "uploads") as (_, url):
        shown, notices = call_on_page(connect(url), "calibrate", typed | {"picture": handle_file(picture_file)})
    assert "K = 1 is the first to meet the threshold" in shown["choose-k-reading"]
    assert any("can't be kept" in notice and "No space left on device" in notice for notice in notices)
