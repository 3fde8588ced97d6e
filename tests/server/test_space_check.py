import pytest

from tests.server.checkouts import git, make_checkout, write
from vtw_demo.__main__ import main
from vtw_demo.server.space import check_space

SENT = [
    *(".gitignore", "README.md", "Spacefile", "app.py", "package/module.py", "package/new.py", "pyproject.toml"),
    "requirements.txt",
]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    folder = tmp_path / "checkout"
    folder.mkdir()
    return make_checkout(folder)


def problems(folder):
    return list(check_space(folder).problems)


def test_this_project_is_in_order(capsys):
    assert main(["space", "check"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("Nothing is wrong.\n")
    assert "37.8 MB  assets/embedded/model.safetensors  (large file storage)\n" in said
    assert "  app.py\n" in said
    assert ".git/" not in said
    assert "__pycache__" not in said


def test_what_git_ignores_is_not_sent_and_all_else_is(checkout, capsys):
    checked = check_space(checkout)
    assert list(checked.sizes) == SENT
    assert checked.sizes == {p: (checkout / p).stat().st_size for p in SENT}
    assert checked.problems == ()
    assert main(["space", "check", "--folder", str(checkout)]) == 0
    said = capsys.readouterr().out
    assert "6 B  package/new.py  (not added to git)\n" in said
    assert f"  in {len(SENT)} files would be sent.\nNothing is wrong.\n" in said


def test_a_file_that_was_deleted_is_not_sent(checkout):
    (checkout / "package/module.py").unlink()
    assert "package/module.py" not in check_space(checkout).sizes


def test_without_a_git_folder_the_gitignore_files_count(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    folder = make_checkout(tmp_path, has_history=False)
    assert list(check_space(folder).sizes) == SENT
    assert main(["space", "check", "--folder", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "There is no .git here: what would not be sent is what the .gitignore files name." in said
    assert "not added" not in said


def test_inside_a_hook_of_another_repository_it_is_still_this_one(checkout, tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet", "--bare", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert list(check_space(checkout).sizes) == SENT


def test_without_git_it_is_said_what_to_do(checkout, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(checkout))
    assert main(["space", "check", "--folder", str(checkout)]) == 2
    assert capsys.readouterr().err == "error: git isn't installed, so what it ignores can't be known: install it.\n"


def test_no_folder_is_said(capsys):
    assert main(["space", "check", "--folder", "no/such"]) == 2
    assert capsys.readouterr().err == "error: There is no folder 'no/such'.\n"


def test_what_is_tracked_and_ignored_is_a_problem_and_not_sent(checkout):
    git(checkout, "add", "--force", "a.log")
    assert "a.log" not in check_space(checkout).sizes
    assert problems(checkout) == [
        "a.log is tracked and yet ignored by git, so it would not be sent: take it out of one of both."
    ]


def test_a_link_is_a_problem_and_not_followed(checkout, tmp_path):
    write(tmp_path, "outside", "secret")
    (checkout / "inside").symlink_to(tmp_path / "outside")
    assert "inside" not in check_space(checkout).sizes
    assert problems(checkout) == ["inside is a symbolic link, and a Space gets files only: put the file there."]


def test_a_large_file_must_be_meant(checkout):
    write(checkout, "big.bin", bytes(10_000_001))
    (said,) = problems(checkout)
    assert said.startswith("big.bin has 10 MB: files over 10 MB go to the hub's large file storage (LFS, Xet).")
    write(checkout, "Spacefile", (checkout / "Spacefile").read_text() + "large_files: [big.bin]\n")
    assert problems(checkout) == []
    (checkout / "big.bin").unlink()
    assert problems(checkout) == ["The Spacefile names big.bin under large_files, and no such file would be sent."]


def test_a_space_has_room_for_so_much_only(checkout, monkeypatch):
    monkeypatch.setattr("vtw_demo.server.space.LARGEST_SPACE", 20_000)
    assert problems(checkout) == []
    write(checkout, "many", bytes(30_000))
    (said,) = problems(checkout)
    assert said.startswith("All files together have 30.")
    assert said.endswith(" kB; a Space may have 20 kB.")


def test_the_front_matter_must_be_the_spacefiles(checkout, capsys):
    write(checkout, "Spacefile", (checkout / "Spacefile").read_text().replace("A demo", "Another"))
    (said,) = problems(checkout)
    assert said.startswith("README.md's front matter is not what the Spacefile says: run `python -m vtw_demo space ")
    for told in ("Wrote the front matter of", "says already what the Spacefile does."):
        assert main(["space", "readme", "--folder", str(checkout)]) == 0
        assert told in capsys.readouterr().out
    assert problems(checkout) == []
    assert (checkout / "README.md").read_text().endswith("# A demo\n")
    (checkout / "README.md").unlink()
    assert problems(checkout) == [
        "There is no README.md, whose front matter tells the hub what the Space is: write one."
    ]
    assert main(["space", "readme", "--folder", str(checkout)]) == 0
    assert problems(checkout) == []


def test_the_app_file_must_be_sent(checkout):
    (checkout / "app.py").unlink()
    said = "The Spacefile names app.py as app_file, and no such file would be sent."
    assert problems(checkout) == [said]
    write(checkout, ".gitignore", "/app.py\n.env\n/runs/\n*.log\n")
    write(checkout, "app.py", "")
    git(checkout, "rm", "--cached", "--force", "--quiet", "app.py")
    assert problems(checkout) == [said]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("numpy", "requirements.txt says no version of numpy: pin one, for example with == or >=."),
        ("-r others.txt", "requirements.txt has '-r others.txt', which says no package with its version: name both."),
        ("gradio>=7", "The Spacefile's sdk_version is 6.31.0, and requirements.txt wants gradio>=7: let them agree."),
        ("numpy>=2", None),
        ("thing @ https://example.com/thing-1.0-py3-none-any.whl", None),
    ],
)
def test_requirements_say_their_versions(checkout, line, said):
    write(checkout, "requirements.txt", (checkout / "requirements.txt").read_text() + line + "\n")
    assert problems(checkout) == ([] if said is None else [said])


def test_the_sdk_must_be_required_and_so_must_something(checkout):
    write(checkout, "requirements.txt", "torch==2.13.0\n")
    assert problems(checkout) == ["requirements.txt lacks gradio, which the Spacefile names as sdk."]
    (checkout / "requirements.txt").unlink()
    assert problems(checkout) == ["There is no requirements.txt, so the Space would install nothing: write one."]


def test_the_python_must_be_one_that_the_project_runs_on(checkout):
    write(checkout, "pyproject.toml", '[project]\nrequires-python = ">=3.13"\n')
    assert problems(checkout) == [
        "The Spacefile's python_version is 3.12.12, and pyproject.toml wants >=3.13: let them agree."
    ]


def test_a_bad_spacefile_is_said_beside_the_rest(checkout, capsys):
    write(checkout, "Spacefile", "title: 7\n")
    write(checkout, "requirements.txt", "numpy\n")
    assert main(["space", "check", "--folder", str(checkout)]) == 2
    said = capsys.readouterr().out
    assert "2 things to put right:\n- The Spacefile lacks emoji, colorFrom" in said
    assert "- requirements.txt says no version of numpy" in said
    assert "  app.py\n" in said


def test_secrets_are_found_and_not_repeated(checkout, capsys):
    token = "hf_" + "Ab3" * 12
    write(checkout, "package/keys.py", f"\n\nclient = login('{token}')\n")
    write(checkout, "config/.env.local", "COLOUR=red\n")
    assert main(["space", "check", "--folder", str(checkout)]) == 2
    said = capsys.readouterr().out
    assert "package/keys.py, line 3, holds what looks like a Hugging Face token. Nothing secret is ever sent:" in said
    assert "config/.env.local is a file for secrets." in said
    assert token not in said


def test_the_users_own_token_is_found_however_it_looks(checkout, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "no-token-looks-so")
    write(checkout, "weights.bin", bytes(100_000) + b"no-token-looks-so" + bytes(100))
    (said,) = problems(checkout)
    assert said.startswith("weights.bin, line 1, holds what looks like the token in use here.")
