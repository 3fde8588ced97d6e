import os
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import close_session

from tests.server.checkouts import make_checkout, write
from tests.server.spaces_hub import READS_ONLY, TOKEN, Space, spaces_hub
from vtw_demo.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def running_hub():
    with spaces_hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub, monkeypatch):
    """The hub that huggingface_hub talks to, without any Space; this machine is logged in there."""
    running_hub.clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running_hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "no/such/file")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield running_hub
    close_session()


@pytest.fixture
def push(tmp_path, capsys):
    """Sends a small checkout; gives the exit code and what is said."""
    make_checkout(tmp_path)

    def send(*arguments, repo="me/demo"):
        code = main(["space", "push", "--folder", str(tmp_path), "--repo", repo, *arguments])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("error: ")]

    send.folder = tmp_path
    return send


def test_a_space_is_created_with_just_the_files_that_git_does_not_ignore(hub, push):
    code, said, _ = push()
    assert code == 0
    assert said.splitlines() == [
        f"Created {hub.address}/spaces/me/demo.",
        "Set the variable VTW_LAYER.",
        f"It has 8 files, {said.split('8 files, ')[1].split(':')[0]}: {hub.address}/spaces/me/demo/commit/1",
    ]
    space = hub.spaces["me/demo"]
    sent = dict(space.files)
    assert sent.pop(".gitattributes")
    assert sorted(sent) == [
        *(".gitignore", "README.md", "Spacefile", "app.py", "package/module.py", "package/new.py", "pyproject.toml"),
        "requirements.txt",
    ]
    for path, content in sent.items():
        assert content == (push.folder / path).read_bytes()
    assert (space.sdk, space.private, space.hardware, space.variables) == ("gradio", False, None, {"VTW_LAYER": "9"})
    # Looked at before anything is created.
    assert hub.asked[0] == "POST /api/validate-yaml"


def test_a_space_is_updated_to_what_the_checkout_is(hub, push):
    hub.spaces["me/demo"] = space = Space(variables={"VTW_LAYER": "3", "OTHER": "stays"})
    space.files |= {"old.py": b"gone", "app.py": b"before"}
    code, said, _ = push()
    assert code == 0
    assert said.startswith(f"Updating {hub.address}/spaces/me/demo.\nSet the variable VTW_LAYER.\n")
    assert "Deleted what isn't in the checkout: old.py.\n" in said
    assert space.variables == {"VTW_LAYER": "9", "OTHER": "stays"}
    assert space.files["app.py"] == (push.folder / "app.py").read_bytes()
    assert "old.py" not in space.files
    assert "POST /api/repos/create" not in hub.asked
    # What is there already is not sent again, and nothing restarts.
    hub.asked.clear()
    assert push()[0] == 0
    assert space.commits == 1
    assert [
        line for line in hub.asked if line.startswith(("POST /api/spaces/me/demo/c", "POST /api/spaces/me/demo/v"))
    ] == []


def test_private_and_hardware_reach_new_and_old_spaces(hub, push):
    assert push("--private", "--hardware", "t4-small", repo="me/new")[0] == 0
    assert (hub.spaces["me/new"].private, hub.spaces["me/new"].hardware) == (True, "t4-small")
    hub.spaces["me/old"] = Space()
    code, said, _ = push("--private", "--hardware", "zero-a10g", repo="me/old")
    assert code == 0
    assert "It is private now.\nAsked for the hardware zero-a10g.\n" in said
    assert (hub.spaces["me/old"].private, hub.spaces["me/old"].hardware) == (True, "zero-a10g")


def test_large_files_go_to_the_large_file_storage(hub, push):
    content = os.urandom(10_500_000)
    write(push.folder, "weights.bin", content)
    write(push.folder, "Spacefile", (push.folder / "Spacefile").read_text() + "large_files: [weights.bin]\n")
    assert push()[0] == 0
    assert hub.spaces["me/demo"].files["weights.bin"] == content
    assert hub.spaces["me/demo"].large == {"weights.bin"}


def test_nothing_is_sent_while_something_is_wrong(hub, push):
    secret = "hf_" + "Ab3" * 12
    write(push.folder, "keys.py", f"login('{secret}')\n")
    code, said, _ = push()
    assert code == 2
    assert said.startswith("1 thing to put right:\n- keys.py, line 1, holds what looks like a Hugging Face token.")
    assert said.endswith("\nNothing was sent.\n")
    assert secret not in said
    assert hub.asked == []


@pytest.mark.parametrize(
    "repo", ["demo", "me/demo/more", "me/de mo", "me/", "/demo", "", "https://huggingface.co/me/x"]
)
def test_a_wrong_name_is_said(hub, push, repo):
    code, _, said = push(repo=repo)
    assert code == 2
    assert said == [f"error: A Space is named USER/NAME, for example 'me/vtw-demo'; this is {repo!r}."]
    assert hub.asked == []


def test_without_a_token_it_is_said_what_to_do(hub, push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    code, said, error = push()
    assert (code, said) == (2, "")
    assert error == [
        "error: There is no token for the hub: log in with `hf auth login`, or set HF_TOKEN to a token that may write."
    ]
    assert hub.asked == []


def test_what_the_hub_refuses_is_said_in_a_sentence_each(hub, push, monkeypatch):
    assert push(repo="someone/demo")[2] == [
        "error: This token may not write to someone/demo: You don't have the rights to create a space under the "
        f'namespace "someone/demo". Make one that may at {hub.address}/settings/tokens, or choose a name of your own.'
    ]
    monkeypatch.setenv("HF_TOKEN", READS_ONLY)
    assert push()[2] == [
        "error: This token may not write to me/demo: you must use a write token. Make one that may at "
        f"{hub.address}/settings/tokens, or choose a name of your own."
    ]
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert push()[2] == [
        "error: The hub doesn't take this token: log in anew with `hf auth login`, or set HF_TOKEN to a valid one."
    ]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuses["POST /api/repos/create"] = 402, "Subscribe to PRO to run Gradio Spaces on cpu-basic"
    assert push()[2] == [
        "error: The hub wants to be paid for me/demo: Subscribe to PRO to run Gradio Spaces on cpu-basic. Choose other "
        f"hardware with --hardware, or see {hub.address}/pricing."
    ]
    hub.refuses["POST /api/repos/create"] = 429, "You made too many Spaces today"
    assert push()[2] == ["error: The hub refused me/demo: You made too many Spaces today."]
    assert hub.spaces == {}


def test_front_matter_that_the_hub_refuses_creates_nothing(hub, push):
    for path in ("Spacefile", "README.md"):
        write(push.folder, path, (push.folder / path).read_text().replace("license: mit", "license: mine"))
    code, _, (said,) = push()
    assert code == 2
    assert said.startswith("error: The hub refuses README.md's front matter: ")
    assert '"license\\" must be one of the hub\'s' in said
    assert hub.asked == ["POST /api/validate-yaml"]


def test_without_a_network_it_is_said(hub, push, monkeypatch):
    expected = "can't be reached: check the network and try again. Nothing is half sent: the files go in one commit."
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push() == (2, "", [f"error: The hub (http://127.0.0.1:9) {expected}"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push() == (2, "", [f"error: The hub ({hub.address}) {expected}"])


def test_this_project_is_sent_from_any_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["space", "push", "--repo", "me/vtw-demo"]) == 0
    space = hub.spaces["me/vtw-demo"]
    assert space.large == {"assets/embedded/model.safetensors"}
    assert space.files["app.py"] == (ROOT / "app.py").read_bytes()
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    # Other work may go on in this checkout meanwhile.
    assert len(set(space.files) ^ {path for path in listed if (ROOT / path).is_file()}) < 5
    assert space.variables == {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
