"""The description of the Space, which the Spacefile holds, and README's front matter, which is made from it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import regex
import yaml
from huggingface_hub import SpaceHardware
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id, yaml_dump

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

SPACEFILE = "Spacefile"
SDK = "gradio"
HARDWARE = tuple(hardware.value for hardware in SpaceHardware)
_KEYS = data_beside(__file__, "spacefile_keys.toml")
COLOURS, REQUIRED = _KEYS["colours"], _KEYS["required"]
_CHOICES = {"colorFrom": COLOURS, "colorTo": COLOURS, "suggested_hardware": HARDWARE}
_LOOKS: dict[str, Sequence[str]] = REQUIRED | _KEYS["optional"]
_LOOKS |= {
    key: ("|".join(choices), f"{key} is one of {', '.join(choices)}; this is {{0!r}}.")
    for key, choices in _CHOICES.items()
}
# Not the hub's.
OWN = ("variables", "large_files")
_EMPTY: dict[str, Any] = dict.fromkeys(_LOOKS, "") | {key: [] for key in _KEYS["lists"]} | {"variables": {}}
# Names under which people keep what nobody may read; a Space's variables are public.
_SECRET_NAME = regex.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|PRIVATE_?KEY|AUTH)$")


def read_spacefile(folder: Path) -> dict[str, Any]:
    """What the Spacefile in a folder says, by its keys; those that it leaves out are empty. What a key means is said in
    the Spacefile itself. Raises UserError for what the hub would refuse or show wrongly."""
    try:
        said = yaml.safe_load((folder / SPACEFILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {SPACEFILE} in {folder}: it describes the Space.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The {SPACEFILE} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(said, dict):
        raise UserError(f"The {SPACEFILE} is a YAML mapping such as 'title: ...'; this is {type(said).__name__}.")
    if unknown := [str(key) for key in said if key not in _EMPTY]:
        raise UserError(f"The {SPACEFILE} has {', '.join(unknown)}, and may have {', '.join(_EMPTY)}.")
    said = {key: value for key, value in said.items() if value is not None}
    if missing := [key for key in REQUIRED if key not in said]:
        raise UserError(f"The {SPACEFILE} lacks {', '.join(missing)}.")
    for key, value in said.items():
        _check_kind(key, value)
    if problems := list(_problems(said)):
        raise UserError(" ".join(problems))
    return _EMPTY | said


def with_front_matter(readme: str, description: dict[str, Any]) -> str:
    """A README with the description at its top, as the hub reads it, in place of the front matter it had."""
    data = {key: value for key, value in description.items() if key not in OWN and value}
    text = REGEX_YAML_BLOCK.sub("", readme.removeprefix("\ufeff"), count=1).lstrip("\r\n")
    return f"---\n{yaml_dump(data, sort_keys=False)}---\n\n{text}"


def is_repository(name: str) -> bool:
    """Whether it is written as the hub's ids of repositories are, USER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _check_kind(key: str, value: Any) -> None:
    kind = type(_EMPTY[key])
    if kind is str and not isinstance(value, str):
        raise UserError(f"{key} in the {SPACEFILE} is text; this is {value!r}: write it in quotes.")
    if kind is list and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise UserError(f"{key} in the {SPACEFILE} is a list of texts; this is {value!r}.")
    if kind is dict and not (
        isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    ):
        raise UserError(f"{key} in the {SPACEFILE} maps names to texts, numbers in quotes; this is {value!r}.")


def _problems(said: dict[str, Any]) -> Iterator[str]:
    for key, (look, sentence) in _LOOKS.items():
        value = said.get(key, ())
        texts = [value] if isinstance(value, str) else value
        yield from (sentence.format(text, len(text)) for text in texts if not regex.fullmatch(look, text))
    for name in (*said.get("models", ()), *(entry.split(" ")[0] for entry in said.get("preload_from_hub", ()))):
        if not is_repository(name):
            yield f"Models are named as on the hub, as USER/NAME; this is {name!r}."
    for name, value in said.get("variables", {}).items():
        if _SECRET_NAME.search(name.upper()):
            yield (
                f"Variables are public, and {name} is named like a secret: take it out of the {SPACEFILE} and set it "
                "as a secret on the Space's settings page."
            )
        if "\0" in value:
            yield f"The variable {name} can't hold a zero character."
