"""The description of the Space, which the Spacefile holds, and README's front matter, which is made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import regex
import yaml
from huggingface_hub import SpaceCardData, SpaceHardware
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vtw_demo.errors import UserError

SPACEFILE = "Spacefile"
SDK = "gradio"
# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
LONGEST_DESCRIPTION = 60
# The Spacefile's keys are the hub's; these two are written otherwise here.
_KEYS = {"color_from": "colorFrom", "color_to": "colorTo"}
# What the hub doesn't read from the front matter.
_OWN = ("variables", "large_files")
# Names under which people keep what nobody may read; a Space's variables are public.
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|PRIVATE_?KEY|AUTH)$")
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---\r?\n.*?\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class SpaceDescription:
    """What the Spacefile says.

    - `models`: ids on the hub that the Space uses; `preload_from_hub`: what is fetched when it is built, each an id,
      or an id with files, or an id with files and a commit, separated by spaces.
    - `suggested_hardware`: what the hub proposes to those who duplicate the Space.
    - `variables`: the Space's public environment variables.
    - `large_files`: paths of files over 10 MB that are meant to be sent.

    Raises ValueError, in a sentence each, for what the hub would refuse or show wrongly.
    """

    title: str
    emoji: str
    color_from: str
    color_to: str
    short_description: str
    sdk: str
    sdk_version: str
    python_version: str
    app_file: str
    license: str
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    preload_from_hub: tuple[str, ...] = ()
    suggested_hardware: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    large_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [*self._display_problems(), *self._running_problems(), *self._hub_problems()]
        if problems:
            raise ValueError(" ".join(problems))

    def _display_problems(self) -> list[str]:
        problems = []
        if not self.title.strip() or "\n" in self.title:
            problems.append(f"The title is one line of text; this is {self.title!r}.")
        if not regex.fullmatch(r"\X", self.emoji) or not regex.search(
            r"[\p{Extended_Pictographic}\p{Regional_Indicator}\u20e3]", self.emoji
        ):
            problems.append(f"The emoji is one emoji and nothing else; this is {self.emoji!r}.")
        for key, colour in (("colorFrom", self.color_from), ("colorTo", self.color_to)):
            if colour not in COLOURS:
                problems.append(f"{key} is one of {', '.join(COLOURS)}; this is {colour!r}.")
        length = len(self.short_description)
        if not self.short_description.strip() or length > LONGEST_DESCRIPTION:
            problems.append(
                f"short_description has 1 to {LONGEST_DESCRIPTION} characters; this has {length}: "
                f"{self.short_description!r}."
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            problems.append(f"The license is named as the hub does, for example mit; this is {self.license!r}.")
        return problems

    def _running_problems(self) -> list[str]:
        problems = []
        if self.sdk != SDK:
            problems.append(f"The sdk is {SDK}, which the page is made with; this is {self.sdk!r}.")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.sdk_version):
            problems.append(f"sdk_version is a whole version such as 6.31.0; this is {self.sdk_version!r}.")
        if not re.fullmatch(r"3\.\d+(\.\d+)?", self.python_version):
            problems.append(f"python_version is 3.x or 3.x.x; this is {self.python_version!r}.")
        for path in (self.app_file, *self.large_files):
            if not path or Path(path).is_absolute() or ".." in Path(path).parts:
                problems.append(f"Files are named by their path in the repository; this is {path!r}.")
        for name, value in self.variables.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                problems.append(f"A variable's name has letters, digits and _ only; this is {name!r}.")
            if _SECRET_NAME.search(name.upper()):
                problems.append(
                    f"Variables are public, and {name} is named like a secret: take it out of the {SPACEFILE} and set "
                    "it as a secret on the Space's settings page."
                )
            if "\0" in value:
                problems.append(f"The variable {name} can't hold a zero character.")
        return problems

    def _hub_problems(self) -> list[str]:
        problems = []
        if self.suggested_hardware is not None and self.suggested_hardware not in HARDWARE:
            problems.append(f"suggested_hardware is one of {', '.join(HARDWARE)}; this is {self.suggested_hardware!r}.")
        for name in (*self.models, *(entry.split(" ")[0] for entry in self.preload_from_hub)):
            if not is_repository(name):
                problems.append(f"Models are named as on the hub, as USER/NAME; this is {name!r}.")
        for entry in self.preload_from_hub:
            _, *rest = entry.split(" ")
            if len(rest) > 2 or not all(rest) or (len(rest) == 2 and not re.fullmatch("[0-9a-f]{40}", rest[1])):
                problems.append(
                    "preload_from_hub has entries such as 'USER/NAME', 'USER/NAME FILE,FILE' or 'USER/NAME FILE,FILE "
                    f"COMMIT'; this is {entry!r}."
                )
        if any(not tag.strip() for tag in self.tags):
            problems.append(f"A tag is a word; these are {', '.join(map(repr, self.tags))}.")
        return problems

    def front_matter(self) -> str:
        """What the hub reads at the top of README.md: YAML between two lines of three dashes."""
        data: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name not in _OWN and value:
                data[_KEYS.get(part.name, part.name)] = list(value) if isinstance(value, tuple) else value
        # The card keeps its own order; the Spacefile's reads better.
        card = SpaceCardData(**data).to_dict()
        text = yaml.safe_dump({key: card[key] for key in data}, sort_keys=False, allow_unicode=True, width=1000)
        return f"---\n{text}---\n"


HARDWARE = tuple(hardware.value for hardware in SpaceHardware)


def is_repository(name: str) -> bool:
    """Whether it is written as the hub's ids of repositories are, USER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def read_spacefile(folder: Path) -> SpaceDescription:
    """The description in a folder's Spacefile. Raises ValueError, in a sentence for people, for what is wrong in it."""
    path = folder / SPACEFILE
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {SPACEFILE} in {folder}: it describes the Space.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The {SPACEFILE} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(said, dict):
        raise UserError(f"The {SPACEFILE} is a YAML mapping such as 'title: ...'; this is {type(said).__name__}.")
    known = {_KEYS.get(part.name, part.name): part for part in fields(SpaceDescription)}
    unknown = [str(key) for key in said if key not in known]
    if unknown:
        raise UserError(f"The {SPACEFILE} has {', '.join(unknown)}, and may have {', '.join(known)}.")
    required = {key for key, part in known.items() if part.type == "str"}
    missing = [key for key in known if key in required and said.get(key) is None]
    if missing:
        raise UserError(f"The {SPACEFILE} lacks {', '.join(missing)}.")
    values = {known[key].name: _read(key, known[key].type, value) for key, value in said.items() if value is not None}
    return SpaceDescription(**values)


def with_front_matter(readme: str, description: SpaceDescription) -> str:
    """A README with the description's front matter at its top, in place of the one it had."""
    text = _FRONT_MATTER.sub("", readme, count=1).lstrip("\r\n")
    return f"{description.front_matter()}\n{text}"


def _read(key: str, kind: Any, value: Any) -> Any:
    if kind == "tuple[str, ...]":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{key} in the {SPACEFILE} is a list of texts; this is {value!r}.")
        return tuple(value)
    if kind == "dict[str, str]":
        pairs = isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
        if not pairs:
            raise UserError(f"{key} in the {SPACEFILE} maps names to texts, numbers in quotes; this is {value!r}.")
        return value
    if not isinstance(value, str):
        raise UserError(f"{key} in the {SPACEFILE} is text; this is {value!r}: write it in quotes.")
    return value
