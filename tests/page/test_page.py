"""What holds of the whole room."""

import ast
from pathlib import Path

import vtw_demo.page

FOLDER = Path(vtw_demo.page.__file__).parent


def imported(module):
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_page_holds_no_torch():
    modules = list(FOLDER.rglob("*.py"))
    assert len(modules) > 10
    for module in modules:
        assert not [name for name in imported(module) if name.split(".")[0] == "torch"], module
