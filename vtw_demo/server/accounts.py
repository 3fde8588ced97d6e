"""Who may use the page: names and passwords, from a file or the environment."""

from __future__ import annotations

from pathlib import Path

from vtw_demo.errors import UserError

HOW = "Give --auth a file, or VTW_AUTH a text, that has user:password on each line."


def read_accounts(file: str | None, text: str | None) -> list[tuple[str, str]] | None:
    """Users with their passwords: of `file` where there is one, else of `text`; None where there is neither.

    A line is `user:password`; blank lines and those that begin with # say nothing. The password may have colons.
    Raises ValueError, in a sentence for people that never holds what was given: it may be a password.
    """
    if file is None and text is None:
        return None
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                "--auth takes a file, and what was given is none that can be read; a password itself would be seen in "
                f"the list of processes. {HOW}"
            ) from error
    accounts: dict[str, str] = {}
    for number, line in enumerate((text or "").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, password = line.strip().partition(":")
        if not user.strip() or not colon or not password:
            raise UserError(f"Line {number} of the accounts is not user:password. {HOW}")
        if user.strip() in accounts:
            raise UserError(f"Line {number} of the accounts names a user again. {HOW}")
        accounts[user.strip()] = password
    if not accounts:
        raise UserError(f"There is no account: nobody could log in. {HOW}")
    return list(accounts.items())
