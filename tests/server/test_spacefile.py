import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceCard
from huggingface_hub.repocard import metadata_load
from packaging.requirements import Requirement

from vtw_demo.errors import UserError
from vtw_demo.server.spacefile import COLOURS, read_spacefile, with_front_matter

ROOT = Path(__file__).parents[2]
DESCRIPTION = read_spacefile(ROOT)


def described(folder, **changes):
    """What is read of this project's Spacefile with so much changed."""
    said = {key: value for key, value in DESCRIPTION.items() if value} | changes
    (folder / "Spacefile").write_text(yaml.safe_dump(said, allow_unicode=True), encoding="utf-8")
    return read_spacefile(folder)


def test_readme_says_what_the_spacefile_says():
    spacefile = yaml.safe_load((ROOT / "Spacefile").read_text(encoding="utf-8"))
    own = {"variables", "large_files"}
    expected = {key: value for key, value in spacefile.items() if key not in own and value}
    # Read as huggingface_hub reads it.
    assert metadata_load(ROOT / "README.md") == expected
    card = SpaceCard.load(ROOT / "README.md")
    assert card.data.to_dict() == expected
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_front_matter(readme, DESCRIPTION)


def test_the_space_runs_what_the_project_asks_for():
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    (gradio,) = [asked for asked in map(Requirement, requirements) if asked.name == "gradio"]
    assert gradio.specifier.contains(DESCRIPTION["sdk_version"])
    assert (ROOT / DESCRIPTION["app_file"]).is_file()
    assert DESCRIPTION["colorFrom"] in COLOURS
    # ZeroGPU runs these two.
    assert DESCRIPTION["python_version"] in ("3.10.13", "3.12.12")


def test_front_matter_is_put_in_and_replaced_and_nothing_else_is_touched(tmp_path):
    text = "# A title\n\nA table:\n\n---\nnot: front matter\n---\n"
    once = with_front_matter(text, DESCRIPTION)
    assert once.startswith("---\ntitle: Visual Tokens Withdrawal\nemoji: 👁\n")
    assert once.endswith("\n---\n\n" + text)
    assert with_front_matter(once, DESCRIPTION) == once
    other = described(tmp_path, title="Another: one", emoji="👁️", python_version="3.12")
    changed = with_front_matter(once, other)
    assert changed.endswith(text)
    assert SpaceCard(changed).data.title == "Another: one"
    # A number would be 3.12, and 3.1 for 3.10.
    assert SpaceCard(changed).data.python_version == "3.12"
    assert SpaceCard(changed).text.strip() == text.strip()
    windows = once.replace("\n", "\r\n")
    assert with_front_matter(windows, DESCRIPTION).count("title: ") == 1


@pytest.mark.parametrize("emoji", ["👁", "👁️", "🇩🇪", "👩‍🔬", "🤏🏽", "1️⃣"])
def test_any_one_emoji_will_do(emoji, tmp_path):
    assert described(tmp_path, emoji=emoji)["emoji"] == emoji


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": " "}, "The title is one line of text; this is ' '."),
        ({"emoji": "A"}, "The emoji is one emoji and nothing else; this is 'A'."),
        ({"emoji": "👁👁"}, "one emoji and nothing else"),
        ({"emoji": ""}, "one emoji and nothing else"),
        ({"colorTo": "orange"}, "colorTo is one of red, yellow, green, blue, indigo, purple, pink, gray; this is 'or"),
        ({"short_description": "x" * 61}, "short_description has 1 to 60 characters; this has 61"),
        ({"license": "MIT License"}, "The license is named as the hub does, for example mit"),
        ({"sdk": "streamlit"}, "The sdk is gradio"),
        ({"sdk_version": "6.31.*"}, "sdk_version is a whole version such as 6.31.0; this is '6.31.*'."),
        ({"python_version": "2.7"}, "python_version is 3.x or 3.x.x; this is '2.7'."),
        ({"app_file": "../app.py"}, "Files are named by their path in the repository; this is '../app.py'."),
        ({"large_files": ["/weights"]}, "Files are named by their path in the repository; this is '/weights'."),
        ({"variables": {"HF_TOKEN": "x"}}, "HF_TOKEN is named like a secret: take it out of the Spacefile"),
        ({"variables": {"VTW_AUTH": "a:b"}}, "VTW_AUTH is named like a secret"),
        ({"variables": {"A-B": "x"}}, "A variable's name has letters, digits and _ only; this is 'A-B'."),
        ({"suggested_hardware": "gpu"}, "suggested_hardware is one of cpu-basic, cpu-upgrade, "),
        ({"models": ["llava"]}, "Models are named as on the hub, as USER/NAME; this is 'llava'."),
        ({"models": ["a/b c"]}, "Models are named as on the hub"),
        ({"preload_from_hub": ["a/b x.json main"]}, "preload_from_hub has entries such as"),
        ({"tags": [""]}, "A tag is a word"),
    ],
)
def test_what_the_hub_would_refuse_is_said(change, said, tmp_path):
    with pytest.raises(UserError, match=re.escape(said)):
        described(tmp_path, **change)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(UserError, match=r"emoji is one.*colorFrom is one of.*python_version is"):
        described(tmp_path, emoji="", colorFrom="", python_version="")


@pytest.mark.parametrize(
    ("line", "by", "said"),
    [
        ("title:", "titel:", "The Spacefile has titel, and may have title, emoji, colorFrom"),
        ("python_version: 3.12.12", "python_version: 3.10", "python_version in the Spacefile is text; this is 3.1: w"),
        ("emoji: 👁", "", "The Spacefile lacks emoji."),
        ("tags:", "tags: {}\nmodels:", "tags in the Spacefile is a list of texts; this is {}."),
        ('"False"', "false", "variables in the Spacefile maps names to texts, numbers in quotes; this is {'GRADIO_"),
        ("title:", "title: [", "The Spacefile is no YAML: "),
    ],
)
def test_a_spacefile_with_a_mistake_is_refused_in_a_sentence(line, by, said, tmp_path):
    text = (ROOT / "Spacefile").read_text(encoding="utf-8")
    assert line in text
    if "models:" in by:
        text = text.replace("models:\n  - llava-hf/llava-1.5-7b-hf\n", "")
    (tmp_path / "Spacefile").write_text(text.replace(line, by, 1), encoding="utf-8")
    with pytest.raises(UserError, match=r".") as raised:
        read_spacefile(tmp_path)
    assert str(raised.value).startswith(said)


def test_no_spacefile_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"There is no Spacefile in .*: it describes the Space\."):
        read_spacefile(tmp_path)
    (tmp_path / "Spacefile").write_text("")
    with pytest.raises(UserError, match=r"is a YAML mapping such as .title: \.\.\.'; this is NoneType"):
        read_spacefile(tmp_path)


def test_models_to_preload_are_named_with_files_and_a_commit(tmp_path):
    entries = ["a/b", "a/b config.json,model.safetensors", f"a/b config.json {'0' * 40}"]
    readme = with_front_matter("", described(tmp_path, preload_from_hub=entries))
    assert SpaceCard(readme).data.to_dict()["preload_from_hub"] == entries
