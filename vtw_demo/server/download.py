"""A download in a process of its own, which can be ended at once, however long the hub is silent."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

from vtw_demo.errors import UserError
from vtw_demo.models.hub import ModelFiles, Report, fetch

TELL_SECONDS = 0.3
ROOT = Path(__file__).parents[2]


def download(files: ModelFiles, report: Report) -> None:
    """As `fetch`. It says how far it is every `TELL_SECONDS`, and what `report` raises ends it."""
    if not files.missing_bytes:
        return
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A session of its own: Ctrl+C is for the server alone.
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(files, process.stdin)
            process.stdin.close()
            for line in process.stdout:
                said = json.loads(line)
                if isinstance(said, str):
                    raise UserError(said)
                report(said, files.missing_bytes)
            if process.wait() != 0:
                raise UserError(f"The download of {files.name} ended, and nothing says why. Try it again.")
        finally:
            process.kill()


def main() -> None:
    """The process. A broken pipe ends it: then nobody waits for it any more."""
    files, end, done = pickle.load(sys.stdin.buffer), Future[None](), 0

    def tell(now: int, total: int) -> None:
        nonlocal done
        done = now

    def run() -> None:
        try:
            fetch(files, tell)
            end.set_result(None)
        except BaseException as error:
            end.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not end.done():
        wait([end], TELL_SECONDS)
        print(done, flush=True)
    try:
        end.result()
    except UserError as error:
        print(json.dumps(str(error)), flush=True)


if __name__ == "__main__":
    main()
