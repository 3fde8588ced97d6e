"""The rooms, which of them may import which, and how long things may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vtw_demo"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"errors", "files", "formats"}
MEASURED = {"withdrawal", "models", "measurements"}
MAY_IMPORT = {
    "withdrawal": set(),
    "models": {"withdrawal"},
    "measurements": {"withdrawal", "models"},
    "embedded": {"withdrawal", "models"},
    "comparison": MEASURED | {"embedded"},
    "plots": MEASURED | {"comparison"},
    "server": MEASURED | {"comparison"},
    "page": MEASURED | {"comparison", "plots", "server", "embedded"},
    "evaluation": MEASURED | {"comparison", "plots", "embedded"},
    "benchmark": MEASURED | {"comparison", "plots"},
    "__init__": MEASURED | {"comparison"},
}


def imported(module):
    """All that a module imports, wherever in it: (full name of what is imported, line)."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room(module):
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def test_there_are_ten_rooms():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms == set(MAY_IMPORT) - {"__init__"}
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__"} | BASE


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_a_room_imports_those_below_it_only(module):
    own = room(module)
    if own == "__main__":  # it names every room's commands
        return
    allowed = set() if own in BASE else MAY_IMPORT[own] | {own} | BASE
    for name, line in imported(module):
        first, _, rest = name.partition(".")
        if first == "vtw_demo":
            assert rest.split(".")[0] in allowed, f"{module}:{line} imports {name}"


def test_the_method_needs_torch_and_transformers_alone():
    for module in (PACKAGE / "withdrawal").rglob("*.py"):
        for name, line in imported(module):
            first = name.split(".")[0]
            assert first in {"torch", "transformers", "vtw_demo"} or first in sys.stdlib_module_names, (
                f"{module}:{line}"
            )


def test_the_page_holds_no_torch():
    for module in (PACKAGE / "page").rglob("*.py"):
        assert "torch" not in {name.split(".")[0] for name, _ in imported(module)}, module


def test_nothing_is_too_long_to_read():
    lengths = {module: len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {str(module): length for module, length in lengths.items() if length > 400} == {}
    assert sum(lengths.values()) <= 20_000
    assert len((ROOT / "README.md").read_bytes()) <= 9_000
