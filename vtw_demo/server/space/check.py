"""What would be sent to a Space, and what is wrong with it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from vtw_demo.errors import UserError
from vtw_demo.formats import amount
from vtw_demo.server.space.description import SDK, SPACEFILE, SpaceDescription, read_spacefile, with_front_matter
from vtw_demo.server.space.files import Checkout, SpaceFile, read_checkout
from vtw_demo.server.space.secret_scan import find_secrets

README = "README.md"
REQUIREMENTS = "requirements.txt"
# Beyond it the hub wants a file in its large file storage (LFS, Xet), and refuses a git push without.
LARGEST_PLAIN_FILE = 10_000_000
# What the repository of a Space may hold.
LARGEST_SPACE = 1_000_000_000


@dataclass(frozen=True)
class SpaceCheck:
    """What would be sent, and a sentence for each thing that is wrong.

    `description` is None where the Spacefile can't be read, which is a problem.
    """

    checkout: Checkout
    problems: tuple[str, ...]
    description: SpaceDescription | None

    @property
    def files(self) -> tuple[SpaceFile, ...]:
        return self.checkout.files

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def is_green(self) -> bool:
        return not self.problems


def check_space(folder: Path) -> SpaceCheck:
    """Look at a checkout as it lies there; nothing is sent, and no network is used.

    Raises ValueError, in a sentence for people, where git can't say which files it ignores.
    """
    checkout = read_checkout(folder)
    paths = {file.path for file in checkout.files}
    problems: list[str] = []
    description = None
    try:
        description = read_spacefile(folder)
    except UserError as error:
        problems.append(str(error))
    if description is not None:
        problems += _described_problems(folder, description, checkout, paths)
    problems += _requirement_problems(folder, paths, description)
    problems += [
        f"{path} is a symbolic link, and a Space gets files only: put the file there." for path in checkout.links
    ]
    problems += [
        f"{path} is tracked and yet ignored by git, so it would not be sent: take it out of one of both."
        for path in checkout.ignored
    ]
    token = get_token()
    problems += [
        f"{found} Nothing secret is ever sent: take it out, and let git ignore files that must stay."
        for found in find_secrets(folder, sorted(paths), [token] if token else [])
    ]
    total = sum(file.size for file in checkout.files)
    if total > LARGEST_SPACE:
        problems.append(f"All files together have {amount(total, 'B')}; a Space may have {amount(LARGEST_SPACE, 'B')}.")
    return SpaceCheck(checkout, tuple(problems), description)


def _described_problems(
    folder: Path, description: SpaceDescription, checkout: Checkout, paths: set[str]
) -> Iterable[str]:
    if description.app_file not in paths:
        yield f"The {SPACEFILE} names {description.app_file} as app_file, and no such file would be sent."
    if README not in paths:
        yield f"There is no {README}, whose front matter tells the hub what the Space is: write one."
    else:
        readme = (folder / README).read_text(encoding="utf-8")
        if readme != with_front_matter(readme, description):
            yield (
                f"{README}'s front matter is not what the {SPACEFILE} says: run `python -m vtw_demo space readme` to "
                "write it anew."
            )
    for file in checkout.files:
        if file.size > LARGEST_PLAIN_FILE and file.path not in description.large_files:
            yield (
                f"{file.path} has {amount(file.size, 'B')}: files over {amount(LARGEST_PLAIN_FILE, 'B')} go to the "
                f"hub's large file storage (LFS, Xet). If it is meant to, name it under large_files in the "
                f"{SPACEFILE}, else let git ignore it."
            )
    for path in description.large_files:
        if path not in paths:
            yield f"The {SPACEFILE} names {path} under large_files, and no such file would be sent."
    wanted = _python_versions(folder)
    if not wanted.contains(description.python_version):
        yield f"The {SPACEFILE}'s python_version is {description.python_version}, and pyproject.toml wants {wanted}."


def _python_versions(folder: Path) -> SpecifierSet:
    project = folder / "pyproject.toml"
    said = tomllib.loads(project.read_text(encoding="utf-8")) if project.is_file() else {}
    return SpecifierSet(said.get("project", {}).get("requires-python", ""))


def _requirement_problems(folder: Path, paths: set[str], description: SpaceDescription | None) -> Iterable[str]:
    if REQUIREMENTS not in paths:
        yield f"There is no {REQUIREMENTS}, so the Space would install nothing: write one."
        return
    sdks = []
    for line in (folder / REQUIREMENTS).read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            yield f"{REQUIREMENTS} has {text!r}, which says no package with its version: name both."
            continue
        if not asked.specifier and not asked.url:
            yield f"{REQUIREMENTS} says no version of {asked.name}: pin one, for example with == or >=."
        if asked.name.lower() == SDK:
            sdks.append(asked)
    if description is None:
        return
    if not sdks:
        yield f"{REQUIREMENTS} lacks {SDK}, which the {SPACEFILE} names as sdk."
    for asked in sdks:
        if not asked.specifier.contains(description.sdk_version):
            yield (
                f"The {SPACEFILE}'s sdk_version is {description.sdk_version}, and {REQUIREMENTS} wants {asked}: let "
                "them agree."
            )
