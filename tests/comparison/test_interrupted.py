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
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import handle_file

from tests.forked import forked
from tests.serving import started
from tests.visitors import FailedError, QueueFullError, Request, call_on_page, compare, connect
from vtw_demo.__main__ import main
from vtw_demo.comparison.calibration import CalibrationStore, calibrate
from vtw_demo.comparison.samples import read_samples
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.files import write_whole

ROOT = Path(__file__).parents[2]
SAMPLES = 6
DISK = 256 * 1024
ANSWER_TOKENS = 256
NO_BROWSER = {"BROWSER_PATH": "/no/such/browser"}


def killed(moment, name, nth, *command, cache):
    with forked(*command, worst=(moment, name, nth), XDG_CACHE_HOME=cache, **NO_BROWSER) as run:
        assert run.ended() in (-signal.SIGKILL, -signal.SIGXFSZ), run.said()


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
def uninterrupted(small, data):
    samples, _ = read_samples(data, SAMPLES)
    *_, calibration = calibrate(small, samples)
    return {sample.fingerprint: m for sample, m in zip(samples, calibration.measurements, strict=True)}


@pytest.fixture
def calibration_command(data, small_folder):
    return ("calibrate", "--model", str(small_folder), "--data", str(data), "--device", "cpu")


@pytest.fixture
def comparison_command(data, small_folder):
    asked = ("--image", str(data / "0.png"), "--question", "What?", "--layer", "6", "--device", "cpu")
    return ("compare", "--model", str(small_folder), *asked)


@pytest.fixture
def benchmark_command(small_folder):
    measured = ("--layers", "6", "--new-tokens", "2", "--rounds", "1", "--no-overheads")
    return ("bench", "--model", str(small_folder), "--device", "cpu", *measured)


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
    layers = {len(measurement.kl) for measurement in uninterrupted.values()}
    kept = store.measurements(*layers)
    for sample, measurement in kept.items():
        assert measurement.kl == pytest.approx(uninterrupted[sample].kl, rel=1e-3, abs=1e-5)
    return len(kept)


def check_finished(store, uninterrupted):
    assert check_kept(store, uninterrupted) == SAMPLES
    result = store.result()
    for measurement, expected in zip(result.measurements, uninterrupted.values(), strict=True):
        assert measurement.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-5)


def test_a_calibration_killed_while_it_writes_goes_on(small, calibration_command, uninterrupted, tmp_path):
    cache = tmp_path / "cache"
    store = store_in(cache, small)
    for moment, name, nth, left in (
        ("half-way", "measurements.jsonl", 2, 1),
        ("before it is written", "measurements.jsonl", 1, 1),
        ("half-way", "measurements.jsonl", 3, 3),
        ("half-way", ".calibration.json", 1, SAMPLES),
        ("before it is renamed", ".calibration.json", 1, SAMPLES),
    ):
        killed(moment, name, nth, *calibration_command, cache=cache)
        assert check_kept(store, uninterrupted) == left, (moment, name)
        assert store.result() is None
    lines = (store.folder / "measurements.jsonl").read_text().count('"sample"')
    done = subprocess.run(
        [sys.executable, "-m", "vtw_demo", *calibration_command], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_finished(store, uninterrupted)
    assert (store.folder / "measurements.jsonl").read_text().count('"sample"') == lines


def test_a_calibration_killed_at_any_moment_goes_on(small, calibration_command, uninterrupted, tmp_path):
    store, generator, before = store_in(tmp_path, small), random.Random(), 0
    file = store.folder / "measurements.jsonl"
    for _ in range(3):
        with forked(*calibration_command, XDG_CACHE_HOME=tmp_path) as run:
            # It is killed when so many more bytes are written, or at its end.
            enough = (file.stat().st_size if file.exists() else 0) + generator.randrange(1000)
            while run.process.is_alive() and (file.stat().st_size if file.exists() else 0) < enough:
                pass
        kept = check_kept(store, uninterrupted)
        assert kept >= before
        before = kept
    with forked(*calibration_command, XDG_CACHE_HOME=tmp_path) as run:
        assert run.ended() == 0, run.said()
    check_finished(store, uninterrupted)


def test_two_calibrations_at_once(small, calibration_command, uninterrupted, tmp_path):
    with (
        forked(*calibration_command, XDG_CACHE_HOME=tmp_path) as one,
        forked(*calibration_command, XDG_CACHE_HOME=tmp_path) as other,
    ):
        assert [one.ended(), other.ended()] == [0, 0], one.said() + other.said()
    store = store_in(tmp_path, small)
    check_finished(store, uninterrupted)
    for line in (store.folder / "measurements.jsonl").read_text().split("\n"):
        assert not line or json.loads(line)["sample"] in uninterrupted


@pytest.mark.parametrize("moment", ["before it is written", "half-way", "before it is renamed"])
def test_an_export_killed_while_it_is_written_leaves_the_old_file(moment, comparison_command, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("old")
    killed(moment, ".report.html", 1, *comparison_command, "--report", report, cache=tmp_path / "cache")
    assert report.read_text() == "old"


def test_a_benchmark_killed_while_it_is_written_leaves_the_old_file(benchmark_command, tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("{}")
    killed("half-way", ".bench.json", 1, *benchmark_command, "--json", file, cache=tmp_path / "cache")
    assert file.read_text() == "{}"


def test_a_disk_quota_is_said_and_leaves_the_old_file(comparison_command, tmp_path):
    report = tmp_path / "out" / "report.html"
    report.parent.mkdir()
    report.write_text("old")
    command, worst = (*comparison_command, "--report", report), ("no more room", ".report.html", 1)
    with forked(*command, worst=worst, XDG_CACHE_HOME=tmp_path / "cache", **NO_BROWSER) as run:
        assert run.ended() == 2
        said = run.said()
    assert f"error: {report} can't be written: File too large.\n" in said
    assert "Traceback" not in said
    assert "every layer sees the picture:" in said
    assert (report.read_text(), names(report.parent)) == ("old", ["report.html"])


def test_exports_to_a_full_disk(comparison_command, benchmark_command, small_disk, capsys):
    (small_disk / "out.html").write_text("old")
    assert main([*comparison_command, "--report", str(small_disk / "out.html")]) == 2
    said = capsys.readouterr()
    assert f"error: {small_disk / 'out.html'} can't be written: No space left on device.\n" in said.err
    assert "every layer sees the picture:" in said.out
    assert ((small_disk / "out.html").read_text(), names(small_disk)) == ("old", ["out.html"])
    fill(small_disk)
    assert main([*benchmark_command, "--json", str(small_disk / "out.html")]) == 2
    said = capsys.readouterr()
    assert "can't be written: No space left on device.\n" in said.err
    assert "| withdrawn at 6 |" in said.out
    assert ((small_disk / "out.html").read_text(), names(small_disk)) == ("old", ["out.html"])


def test_a_calibration_whose_cache_is_full_gives_its_result_and_says_so(
    small, calibration_command, uninterrupted, small_disk, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    store, out = store_in(small_disk, small), tmp_path / "out"
    command = [*calibration_command, "--out", str(out)]
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


def test_a_calibration_without_any_room_is_whole_all_the_same(small, data, small_disk):
    fill(small_disk)
    store = store_in(small_disk, small)
    samples, _ = read_samples(data, SAMPLES)
    *_, calibration = calibrate(small, samples, store=store)
    assert len(calibration.measurements) == SAMPLES
    assert "No space left on device" in store.problem
    assert store.result() is None
    (small_disk / "filler").unlink()
    *_, again = calibrate(small, samples, store=store)
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


@pytest.fixture
def endless(small_folder, tmp_path):
    """The small model, which now never ends an answer by itself."""
    folder = tmp_path / "endless"
    shutil.copytree(small_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": None}))
    return folder


def test_sigterm_in_the_middle_of_a_long_answer(endless, picture_file, tmp_path):
    request = Request(picture_file, "What do you see?", 6, ANSWER_TOKENS)
    with started(tmp_path, "--model", endless) as (url, process, log), ThreadPoolExecutor(4) as pool:
        first = compare(connect(url), request)
        assert len(first["full"]["tokens"]) == ANSWER_TOKENS
        visitors = [connect(url) for _ in range(4)]
        asked = [pool.submit(compare, visitor, request) for visitor in visitors]
        # One has its turn, three wait for theirs.
        while "vtw_queue_length 3.0" not in httpx.get(f"{url}/metrics", trust_env=False).text:
            assert not any(task.done() for task in asked)
        children, begun = psutil.Process(process.pid).children(recursive=True), time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, took = process.wait(30), time.monotonic() - begun
        output = log.read_text()
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


def test_the_page_says_that_a_calibration_cannot_be_kept(small_folder, small_disk, picture_file, tmp_path):
    fill(small_disk)
    typed = {"question": "What do you see?", "layer": 6, "max-new-tokens": 4, "threshold": 9, "detail": "usual"}
    environment = {"XDG_CACHE_HOME": str(small_disk), "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    with started(tmp_path, "--model", small_folder, **environment) as (url, _, _):
        shown, notices = call_on_page(connect(url), "calibrate", typed | {"picture": handle_file(picture_file)})
    assert "K = 1 is the first to meet the threshold" in shown["choose-k-reading"]
    assert any("can't be kept" in notice and "No space left on device" in notice for notice in notices)
