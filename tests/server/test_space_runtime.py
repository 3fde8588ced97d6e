from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vtw_demo.server.space_runtime import default_host, on_space, use_own_cores


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "CPU_CORES"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads():
    """As many as torch takes in a thread of its own."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(torch.get_num_threads).result()


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setenv("CPU_CORES", "2")
    use_own_cores()
    assert (on_space(), default_host(), threads()) == (False, "127.0.0.1", 3)


def test_a_space_is_open_to_its_visitors_and_computes_on_its_own_processors(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/demo")
    monkeypatch.setenv("CPU_CORES", "2")
    use_own_cores()
    assert (on_space(), default_host(), threads()) == (True, "0.0.0.0", 2)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    assert default_host() == "127.0.0.1"


@pytest.mark.parametrize("cores", ["", "0", "many", "8"])
def test_it_never_takes_more_or_none(cores, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/demo")
    monkeypatch.setenv("CPU_CORES", cores)
    use_own_cores()
    assert threads() == 3
