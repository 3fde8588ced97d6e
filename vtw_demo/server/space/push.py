"""Sending the demo to a Space on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from vtw_demo.errors import UserError
from vtw_demo.formats import amount, count
from vtw_demo.server.space.check import README, SpaceCheck
from vtw_demo.server.space.description import HARDWARE, SpaceDescription, is_repository

MESSAGE = "VTW Demo, sent by `python -m vtw_demo space push`"
# The hub writes it itself: which files are in its large file storage.
_THE_HUBS_OWN = (".gitattributes",)


def push_space(
    folder: Path, checked: SpaceCheck, repository: str, private: bool = False, hardware: str | None = None
) -> Iterator[str]:
    """Create the Space `repository` (USER/NAME), or make it what `folder` is; yields a sentence for each step.

    The files are those of `checked`, and no others; what the Space has beside them is deleted (its history keeps it).
    The Spacefile's variables are set; what else is set there, secrets among it, stays.

    - `private`: only its owner sees it. An existing Space is made private too; without, its visibility stays.
    - `hardware`: what it runs on, as the hub names it; None leaves that, for a new Space the free hardware.

    Raises ValueError, in a sentence for people, for what isn't in order, a wrong name, unknown hardware, a missing
    token, and all that the hub refuses; ConnectionError where it can't be reached.
    """
    if not is_repository(repository):
        raise UserError(f"A Space is named USER/NAME, for example 'me/vtw-demo'; this is {repository!r}.")
    if hardware is not None and hardware not in HARDWARE:
        raise UserError(f"Unknown hardware {hardware!r}: choose one of {', '.join(HARDWARE)}.")
    if checked.description is None or not checked.is_green:
        raise UserError("Nothing was sent: `python -m vtw_demo space check` says what to put right first.")
    token = get_token()
    if token is None:
        raise UserError(
            "There is no token for the hub: log in with `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    api = HfApi(token=token)
    with _sentences(repository):
        # As the hub reads it; nothing is created for what it would refuse.
        _validate(folder)
        yield from _make(api, repository, checked.description, private, hardware)
        yield from _set_variables(api, repository, checked.description)
        yield from _send(api, repository, folder, checked)


def _validate(folder: Path) -> None:
    try:
        RepoCard.load(folder / README).validate(repo_type="space")
    except UserError as error:
        raise UserError(f"The hub refuses {README}'s front matter: {' '.join(str(error).split())}") from error


def _make(
    api: HfApi, repository: str, description: SpaceDescription, private: bool, hardware: str | None
) -> Iterator[str]:
    address = f"{constants.ENDPOINT}/spaces/{repository}"
    try:
        known = api.space_info(repository)
    except RepositoryNotFoundError:
        flavor = {} if hardware is None else {"space_hardware": hardware}
        api.create_repo(
            repository,
            repo_type="space",
            space_sdk=description.sdk,
            private=private or None,
            **flavor,  # type: ignore[arg-type]
        )
        yield f"Created {address}."
        return
    yield f"Updating {address}."
    if private and not known.private:
        api.update_repo_settings(repository, repo_type="space", private=True)
        yield "It is private now."
    if hardware is not None:
        api.request_space_hardware(repository, hardware)  # type: ignore[arg-type]
        yield f"Asked for the hardware {hardware}."


def _set_variables(api: HfApi, repository: str, description: SpaceDescription) -> Iterator[str]:
    known = {name: variable.value for name, variable in api.get_space_variables(repository).items()}
    for name, value in description.variables.items():
        # Each that is set restarts the Space.
        if known.get(name) != value:
            api.add_space_variable(repository, name, value)
            yield f"Set the variable {name}."


def _send(api: HfApi, repository: str, folder: Path, checked: SpaceCheck) -> Iterator[str]:
    sent = {file.path for file in checked.files}
    others = set(api.list_repo_files(repository, repo_type="space")) - sent - set(_THE_HUBS_OWN)
    commit = api.create_commit(
        repository,
        [
            *(CommitOperationAdd(path, folder / path) for path in sorted(sent)),
            *(CommitOperationDelete(path) for path in sorted(others)),
        ],
        commit_message=MESSAGE,
        repo_type="space",
    )
    if others:
        yield f"Deleted what isn't in the checkout: {', '.join(sorted(others))}."
    yield f"It has {count(len(sent), 'file')}, {amount(checked.total, 'B')}: {commit.commit_url}"


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    hub = constants.ENDPOINT
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = _said(error)
        if status == 401:
            sentence = (
                "The hub doesn't take this token: log in anew with `hf auth login`, or set HF_TOKEN to a valid one."
            )
        elif status == 402:
            sentence = (
                f"The hub wants to be paid for {repository}: {said} Choose other hardware with --hardware, or see "
                f"{hub}/pricing."
            )
        elif status == 403:
            sentence = (
                f"This token may not write to {repository}: {said} Make one that may at {hub}/settings/tokens, or "
                "choose a name of your own."
            )
        else:
            sentence = f"The hub refused {repository}: {said}"
        raise UserError(sentence) from error
    except (HTTPError, ConnectionError) as error:
        raise ConnectionError(
            f"The hub ({hub}) can't be reached: check the network and try again. Nothing is half sent: the files go in "
            "one commit."
        ) from error


def _said(error: HfHubHTTPError) -> str:
    """What the hub itself says, without addresses and ids of requests."""
    text = " ".join((error.server_message or str(error)).split())
    return text if text.endswith((".", "!", "?")) else f"{text}."
