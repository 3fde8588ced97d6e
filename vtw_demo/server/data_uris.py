"""Pictures that come inside a call of an MCP tool, as data URIs: stored like uploads."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.server.access import MAXIMUM_UPLOAD_BYTES, TOO_LARGE

WANTED = "The picture must be a data URI, data:image/png;base64,... : files and addresses are never read."


class DataUris:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def replaced(self, arguments: dict[str, Any], positions: list[list[str | int]]) -> dict[str, Any]:
        """A tool's arguments, with a reference to a stored file at each of the `positions` where Gradio wants one.

        Raises ValueError, in a sentence for people, where something else than a picture's data URI stands there.
        """
        names = {position[0] for position in positions}
        return {name: self._stored(value) if name in names else value for name, value in arguments.items()}

    def _stored(self, uri: Any) -> dict[str, str]:
        if not isinstance(uri, str) or not uri.startswith("data:"):
            raise UserError(WANTED)
        head, _, encoded = uri.partition(",")
        if not head.endswith(";base64"):
            raise UserError(WANTED)
        if len(encoded) > MAXIMUM_UPLOAD_BYTES * 4 // 3 + 4:
            raise UserError(TOO_LARGE)
        try:
            content = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"The picture's base64 is broken. {WANTED}") from error
        file = self.folder / hashlib.sha256(content).hexdigest() / "picture"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return {"path": str(file)}
