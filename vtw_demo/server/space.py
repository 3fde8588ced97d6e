"""The Hugging Face Space of the demo: what would be sent to it, what is wrong with that, and sending it.

The files go in one commit of exactly those that git doesn't ignore. `HfApi.upload_folder` sends several commits where
hf_xet is installed, and reads names as patterns; so the commit's operations are listed here.
"""

import os
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.formats import amount, count
from vtw_demo.server.secret_scan import find_secrets
from vtw_demo.server.spacefile import SDK, is_repository, read_spacefile, with_front_matter

README = "README.md"
REQUIREMENTS = "requirements.txt"
# Beyond it the hub wants a file in its large file storage (LFS, Xet), and refuses a git push without.
LARGEST_PLAIN_FILE = 10_000_000
# What the repository of a Space may hold.
LARGEST_SPACE = 1_000_000_000
# What may be wrong with a checkout; what the hub's refusals mean, by status.
_PROBLEMS = data_beside(__file__, "space_problems.toml")
_REFUSALS = data_beside(__file__, "hub_refusals.toml")
MESSAGE = "VTW Demo, sent by `python -m vtw_demo space push`"


@dataclass(frozen=True)
class Checkout:
    """What would be sent of a folder, and a sentence for each thing that is wrong with it."""

    folder: Path
    sizes: dict[str, int]  # bytes of each file that git doesn't ignore, by its path
    total_bytes: int
    untracked: frozenset[str]  # those that nobody has added yet
    has_history: bool  # whether git keeps the folder; without, its .gitignore files alone are asked
    description: dict[str, Any] | None  # what the Spacefile says; None where it can't be read, which is a problem
    problems: tuple[str, ...]


def check_space(folder: Path) -> Checkout:
    """Look at a checkout as it lies there; no network is used."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r}.")
    has_history = (folder / ".git").exists()
    with tempfile.TemporaryDirectory() as empty:
        if not has_history:
            _git(folder, "init", "--quiet", "--bare", empty)
        at = [] if has_history else [f"--git-dir={empty}", "--work-tree=."]
        tracked = _git(folder, *at, "ls-files", "-z", "--cached")
        untracked = _git(folder, *at, "ls-files", "-z", "--others", "--exclude-standard")
        ignored = _git(folder, *at, "ls-files", "-z", "--cached", "--ignored", "--exclude-standard")
    found = sorted((tracked | untracked) - ignored)
    links = [path for path in found if (folder / path).is_symlink()]
    sizes = {path: (folder / path).stat().st_size for path in found if (folder / path).is_file() and path not in links}
    total_bytes = sum(sizes.values())
    problems: list[str] = []
    description = None
    try:
        description = read_spacefile(folder)
        problems += _described_problems(folder, description, sizes)
    except UserError as error:
        problems.append(str(error))
    problems += _requirement_problems(folder, sizes, description)
    lost = [path for path in sorted(ignored) if (folder / path).is_file()]
    problems += [_PROBLEMS["link"].format(path=path) for path in links]
    problems += [_PROBLEMS["ignored"].format(path=path) for path in lost]
    problems += [_PROBLEMS["secret"].format(found=found) for found in find_secrets(folder, sizes, get_token())]
    if total_bytes > LARGEST_SPACE:
        size, most = amount(total_bytes, "B"), amount(LARGEST_SPACE, "B")
        problems.append(_PROBLEMS["too large"].format(size=size, most=most))
    return Checkout(folder, sizes, total_bytes, frozenset(untracked), has_history, description, tuple(problems))


def _git(folder: Path, *arguments: str) -> set[str]:
    # Inside a hook, these would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        asked = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UserError("git isn't installed, so what it ignores can't be known: install it.") from error
    if asked.returncode:
        said = " ".join(asked.stderr.decode(errors="replace").split())
        raise UserError(f"git can't say what it ignores in {folder}: {said}")
    return set(filter(None, asked.stdout.decode(errors="surrogateescape").split("\0")))


def _described_problems(folder: Path, description: dict[str, Any], sizes: dict[str, int]) -> Iterator[str]:
    if description["app_file"] not in sizes:
        yield _PROBLEMS["no such file"].format(path=description["app_file"], key="as app_file")
    if README not in sizes:
        yield _PROBLEMS["no readme"]
    else:
        readme = (folder / README).read_text(encoding="utf-8")
        if readme != with_front_matter(readme, description):
            yield _PROBLEMS["other front matter"]
    for path, size in sizes.items():
        if size > LARGEST_PLAIN_FILE and path not in description["large_files"]:
            held, most = amount(size, "B"), amount(LARGEST_PLAIN_FILE, "B")
            yield _PROBLEMS["large file"].format(path=path, size=held, most=most)
    for path in description["large_files"]:
        if path not in sizes:
            yield _PROBLEMS["no such file"].format(path=path, key="under large_files")
    project, version = folder / "pyproject.toml", description["python_version"]
    said = tomllib.loads(project.read_text(encoding="utf-8")) if project.is_file() else {}
    wanted = SpecifierSet(said.get("project", {}).get("requires-python", ""))
    if version not in wanted:
        yield _PROBLEMS["other version"].format(key="python_version", version=version, file=project.name, wanted=wanted)


def _requirement_problems(folder: Path, sizes: dict[str, int], description: dict[str, Any] | None) -> Iterator[str]:
    if REQUIREMENTS not in sizes:
        yield _PROBLEMS["no requirements"]
        return
    sdks = []
    for line in (folder / REQUIREMENTS).read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            yield _PROBLEMS["no requirement"].format(text=text)
            continue
        if not asked.specifier and not asked.url:
            yield _PROBLEMS["no version"].format(name=asked.name)
        if asked.name.lower() == SDK:
            sdks.append(asked)
    if description is None:
        return
    if not sdks:
        yield _PROBLEMS["no sdk"].format(sdk=SDK)
    version = description["sdk_version"]
    for asked in sdks:
        if version not in asked.specifier:
            yield _PROBLEMS["other version"].format(key="sdk_version", version=version, file=REQUIREMENTS, wanted=asked)


def push_space(checkout: Checkout, repository: str, private: bool, hardware: str | None) -> Iterator[str]:
    """Create the Space `repository` (USER/NAME), or make it what `checkout` is, in which nothing is wrong; yields a
    sentence for each step.

    What the Space has beside its files is deleted (its history keeps it). The Spacefile's variables are set; what else
    is set there, secrets among it, stays.

    - `private`: only its owner sees it. An existing Space is made private too; without, its visibility stays.
    - `hardware`: what it runs on, as the hub names it; None leaves that, for a new Space the free hardware.
    """
    assert checkout.description is not None
    assert not checkout.problems
    if not is_repository(repository):
        raise UserError(f"A Space is named USER/NAME, for example 'me/vtw-demo'; this is {repository!r}.")
    token = get_token()
    if token is None:
        raise UserError(
            "There is no token for the hub: log in with `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    api = HfApi(token=token)
    with _in_sentences(repository):
        # As the hub reads it; nothing is created for what it would refuse.
        try:
            RepoCard.load(checkout.folder / README).validate(repo_type="space")
        except ValueError as error:
            raise UserError(f"The hub refuses {README}'s front matter: {' '.join(str(error).split())}") from error
        yield from _create_or_change(api, repository, private, hardware)
        known = {name: variable.value for name, variable in api.get_space_variables(repository).items()}
        for name, value in checkout.description["variables"].items():
            # Each that is set restarts the Space.
            if known.get(name) != value:
                api.add_space_variable(repository, name, value)
                yield f"Set the variable {name}."
        yield from _send(api, repository, checkout)


def _create_or_change(api: HfApi, repository: str, private: bool, hardware: Any) -> Iterator[str]:
    address = f"{constants.ENDPOINT}/spaces/{repository}"
    try:
        known = api.space_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, repo_type="space", space_sdk=SDK, private=private or None, space_hardware=hardware)
        yield f"Created {address}."
        return
    yield f"Updating {address}."
    if private and not known.private:
        api.update_repo_settings(repository, repo_type="space", private=True)
        yield "It is private now."
    if hardware is not None:
        api.request_space_hardware(repository, hardware)
        yield f"Asked for the hardware {hardware}."


def _send(api: HfApi, repository: str, checkout: Checkout) -> Iterator[str]:
    # The hub writes .gitattributes itself: which files are in its large file storage.
    there = set(api.list_repo_files(repository, repo_type="space")) - {".gitattributes"}
    others = sorted(there - checkout.sizes.keys())
    added = [CommitOperationAdd(path, checkout.folder / path) for path in checkout.sizes]
    deleted = [CommitOperationDelete(path) for path in others]
    commit = api.create_commit(repository, [*added, *deleted], commit_message=MESSAGE, repo_type="space")
    if others:
        yield f"Deleted what isn't in the checkout: {', '.join(others)}."
    yield f"It has {count(len(checkout.sizes), 'file')}, {amount(checkout.total_bytes, 'B')}: {commit.commit_url}"


@contextmanager
def _in_sentences(repository: str) -> Iterator[None]:
    hub = constants.ENDPOINT
    try:
        yield
    except HfHubHTTPError as error:
        # What the hub itself says, without addresses and ids of requests.
        said = " ".join((error.server_message or str(error)).split())
        said += "" if said.endswith((".", "!", "?")) else "."
        sentence = _REFUSALS.get(str(error.response.status_code), _REFUSALS["any other"])
        raise UserError(sentence.format(repository=repository, said=said, hub=hub)) from error
    except (HTTPError, ConnectionError) as error:
        raise ConnectionError(
            f"The hub ({hub}) can't be reached: check the network and try again. Nothing is half sent: the files go in "
            "one commit."
        ) from error
