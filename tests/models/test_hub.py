import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import saved_models
from tests.hub_server import COMMIT, NOBODY, ask_hub, hub_server
from vtw_demo import load
from vtw_demo.models.loading import ModelChoice, check_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What the hub has, by id."""
    whole, pickled, bare = (tmp_path_factory.mktemp(name) for name in ("whole", "pickled", "bare"))
    saved_models.save("llava", whole)
    (whole / "pytorch_model.bin").write_bytes(b"never asked for")
    (whole / "modeling_own.py").write_text("raise SystemExit('never run')")
    (pickled / "config.json").write_text((whole / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"")
    (bare / "README.md").write_text("nothing")
    return {"some/llava": whole, "some/pickled": pickled, "some/bare": bare, "some/gated": None}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Sets which hub is asked."""
    return partial(ask_hub, monkeypatch, tmp_path)


@contextmanager
def refused(*parts):
    """One sentence or two that name all of `parts`."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


def test_a_model_is_downloaded_once_and_then_needs_no_network(models, hub):
    said = []
    with hub_server(models) as (address, paths):
        hub(address)
        missing = check_model(ModelChoice("some/llava", device="cpu")).files.missing_bytes
        wanted = [path for path in models["some/llava"].iterdir() if path.suffix not in (".py", ".bin")]
        assert missing == sum(path.stat().st_size for path in wanted if path.name != "config.json")
        assert load("some/llava", device="cpu", on_progress=said.append).revision == COMMIT
        # Its code and its pickles were not even fetched.
        assert not [path for path in paths if path.endswith((".py", ".bin"))]
        paths.clear()
        assert load("some/llava", device="cpu", revision="main").revision == COMMIT
        assert not [path for path in paths if path.endswith(".safetensors")]
    downloaded = [progress for progress in said if progress.step == "downloading"]
    assert [progress.done for progress in downloaded] == sorted(progress.done for progress in downloaded)
    assert (downloaded[-1].done, downloaded[-1].total) == (missing, missing)
    for offline in (False, True):
        hub(address, offline)
        assert load("some/llava", device="cpu").revision == COMMIT


def test_what_the_hub_refuses_is_said_in_a_sentence_each(models, hub):
    with hub_server(models) as (address, _):
        hub(address)
        for name, revision, expected in (
            ("some/nothing", None, f"There is no model 'some/nothing' on the hub ({address}), or it is private: check"),
            (
                "some/gated",
                None,
                f"The model 'some/gated' is gated: ask for access at {address}/some/gated, then log in",
            ),
            ("some/llava", "v9", f"The model 'some/llava' has no revision 'v9': check it at {address}/some/llava."),
            (
                "some/pickled",
                None,
                "not in safetensors (model.safetensors, or files with model.safetensors.index.json), the only ones",
            ),
            ("some/bare", None, "has no config.json, so it is no model of transformers. Check the id"),
            ("no such/id at all", None, "there is no such folder, and it is no id of the hub either, which looks like"),
        ):
            said = []
            with refused(name, expected):
                load(name, device="cpu", revision=revision, on_progress=said.append)
            assert list(map(str, said)) == [f"Checking: {name}."]


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_it_is_said_what_to_do(hub, offline):
    hub(NOBODY, offline)
    with refused(
        f"The model 'some/llava' is not, or not whole, in this machine's cache, and the hub ({NOBODY})",
        "can't be reached: check the network, or choose a model that is here, such as 'embedded'.",
    ):
        load("some/llava", device="cpu")


def test_a_download_that_breaks_off_goes_on_later(models, hub):
    with hub_server(models, breaks_at=20_000) as (address, _):
        hub(address)
        with refused("'some/llava' broke off; what has come is kept. Check the network and try again."):
            load("some/llava", device="cpu")
    # A cache that is not whole is none.
    hub(address, offline=True)
    with refused("not whole"):
        load("some/llava", device="cpu")
    with hub_server(models) as (address, _):
        hub(address)
        assert load("some/llava", device="cpu").revision == COMMIT


def test_the_page_says_it_before_it_starts(models, tmp_path):
    with hub_server(models) as (address, _):
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
        started = subprocess.run(
            [sys.executable, "app.py", "--model", "some/gated"], cwd=ROOT, capture_output=True, text=True, timeout=120,
            env=os.environ | variables,
        )  # fmt: skip
    assert started.returncode == 2
    assert started.stderr.splitlines()[-1].startswith("VTW Demo can't start: The model 'some/gated' is gated: ask for")
    assert "Traceback" not in started.stderr
