"""The method, the sweep and attention mass with several versions of transformers, each in an environment of its own.

`python -m tests.versions` makes the environments in `runs/versions`, with torch, transformers and pytest only, runs
the tests against the oracles there, and prints a table. `--nightly` runs the widest grids, too.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEWEST = "newest"
VERSIONS = ("5.0", "5.10", "5.17", NEWEST)
TESTS = (
    "tests/withdrawal/test_withdraw.py",
    "tests/withdrawal/test_token_pruning.py",
    "tests/withdrawal/test_layer_inputs.py",
    "tests/withdrawal/test_families.py",
    "tests/measurements/test_layer_sweep.py",
    "tests/measurements/test_attention.py",
)
SAY = """
import json, torch, transformers
from tests.families import LEFT_OUT
print(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "left out": LEFT_OUT}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the result is 1 if a test failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"of transformers; by default {VERSIONS}")
    parser.add_argument("--torch", default=version("torch").split("+")[0], help="version of torch")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "versions", help="where the environments are")
    parser.add_argument("--nightly", action="store_true", help="the widest grids, too")
    options = parser.parse_args(arguments)
    rows, failed = [], 0
    for transformers in options.versions:
        python = environment(options.folder, transformers, options.torch)
        said, counts = try_out(python, options.folder, options.nightly)
        failed += counts["failed"]
        left_out = "; ".join(f"{name} ({why})" for name, why in said["left out"].items()) or "none"
        cells = said["transformers"], said["torch"], counts["passed"], counts["failed"], counts["skipped"], left_out
        rows.append(f"| {' | '.join(map(str, cells))} |")
    print("| transformers | torch | passed | failed | skipped | families left out |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")
    return 1 if failed else 0


def environment(folder: Path, transformers: str, torch: str) -> Path:
    """The interpreter of an environment with these versions, made where it isn't there yet."""
    place = folder / f"transformers-{transformers}-torch-{torch}"
    python = place / "bin" / "python"
    if not python.is_file():
        venv.create(place, with_pip=True)
    wanted = "transformers" if transformers == NEWEST else f"transformers=={transformers}.*"
    subprocess.run([python, "-m", "pip", "install", "-qU", f"torch=={torch}", wanted, "pytest"], check=True)
    return python


def try_out(python: Path, folder: Path, nightly: bool) -> tuple[dict, dict[str, int]]:
    """What is in an environment, and how many tests passed there, failed and were skipped."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    settings = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}}
    said = subprocess.run([python, "-c", SAY], **settings, check=True, stdout=subprocess.PIPE, text=True).stdout
    marks = ["-m", "nightly or not nightly"] if nightly else []
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *marks, *TESTS]
    done = subprocess.run(command, **settings, stdout=sys.stderr)
    if not report.is_file():
        raise SystemExit(f"pytest broke off with exit code {done.returncode}.")
    suite = ElementTree.parse(report).getroot()[0].attrib
    failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    return json.loads(said), {
        "passed": int(suite["tests"]) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
    }


if __name__ == "__main__":
    sys.exit(main())
