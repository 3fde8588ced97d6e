"""The library in an environment that isn't the demo's: what it imports, what it needs, and what its package holds."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = ("torch", "transformers")
LIBRARY = [
    re.match(r"[\w-]+", requirement)[0]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def with_requirements(names):
    """Distributions and what they need without extras, as far as it is here."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # for other systems
            continue
        if name not in found:
            found.add(name)
            left += [re.match(r"[\w.-]+", line)[0] for line in needed if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Makes a folder that holds these distributions, with their requirements, and nothing else."""

    def make(*names):
        folder = tmp_path_factory.mktemp("packages")
        for name in with_requirements(names):
            files = distribution(name).files
            for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
                link = folder / top
                if not link.exists():
                    link.symlink_to(distribution(name).locate_file(top))
        return folder

    return make


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("vtw_demo", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", folder], check=True, capture_output=True
    )
    return next((folder / "dist").glob("*.whl"))


def run(code, *folders):
    """What code prints that finds the standard library and these folders only; it must end well."""
    path = f"import sys; sys.path += {list(map(str, folders))}\n"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", path + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_imports_nothing_else():
    loaded = "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})"
    assert eval(run(f"import vtw_demo; {loaded}", ROOT)) == {"vtw_demo"}


def test_the_method_needs_torch_and_transformers_only(environment):
    names = "withdraw, sweep, choose_layer, measure_attention"
    folder = environment(*METHOD)
    assert not {"PIL", "accelerate", "av", "bitsandbytes", "gradio", "plotly", "psutil"} & {
        path.name for path in folder.iterdir()
    }
    used = f"from vtw_demo import {names}; print([name.__name__ for name in ({names})])"
    assert eval(run(used, folder, ROOT)) == names.split(", ")


def test_a_name_loads_its_own_module_only(environment):
    code = "from vtw_demo import withdraw; print([name for name in sys.modules if name.startswith('vtw_demo.')])"
    rooms = {name.split(".")[1] for name in eval(run(code, environment(*METHOD), ROOT))}
    assert rooms == {"withdrawal", "errors", "files"}


def test_names_are_listed_and_others_are_refused():
    import vtw_demo

    assert set(vtw_demo.__all__) <= set(dir(vtw_demo))
    for name in vtw_demo.__all__:
        assert getattr(vtw_demo, name).__name__ == name
    with pytest.raises(AttributeError, match="'vtw_demo' has no attribute 'nothing'"):
        _ = vtw_demo.nothing


LIBRARY_ALONE = """
import pkgutil
from importlib import import_module
import vtw_demo, vtw_demo.models
from vtw_demo.errors import UserError

for name in vtw_demo.__all__:
    getattr(vtw_demo, name)
for module in pkgutil.iter_modules(vtw_demo.models.__path__):
    import_module(f"vtw_demo.models.{module.name}")
from vtw_demo.models.video import FrameSampling, read_clip

def refusal(work):
    try:
        work()
    except UserError as error:
        print(error)

refusal(lambda: read_clip("clip.mp4", FrameSampling(1, 1)))
refusal(lambda: vtw_demo.load(device="cpu"))
from vtw_demo.__main__ import main
sys.stderr = sys.stdout
print(main(["compare", "--help"]))

from PIL import Image
vlm = vtw_demo.load(EMBEDDED, device="cpu")
*_, comparison = vtw_demo.compare(vlm, Image.new("RGB", (64, 64), "red"), "What is this?", 6, max_new_tokens=2)
print(len(comparison.withdrawn.tokens))
"""


def test_the_library_needs_its_own_dependencies_only_and_says_what_else_does_more(environment, wheel):
    folder = environment(*LIBRARY)
    zipfile.ZipFile(wheel).extractall(folder)
    code = f"EMBEDDED = {str(ROOT / 'assets' / 'embedded')!r}\n{LIBRARY_ALONE}"
    without_clips, without_assets, without_plots, code, answer = run(code, folder).splitlines()
    assert "the package av, which isn't installed: pip install av" in without_clips
    assert "the package comes without it. Get this project's repository" in without_assets
    assert without_plots.startswith("error: The command compare needs the package plotly, which isn't installed")
    assert (code, answer) == ("2", "2")


def test_the_wheel_has_the_package_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vtw_demo"}
    there = {name for name in names if name.startswith("vtw_demo/")}
    files = (path for path in (ROOT / "vtw_demo").rglob("*.*") if path.suffix not in (".md", ".pyc"))
    assert there == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.nightly
def test_a_fresh_environment_withdraws(tmp_path, wheel):
    """`pip install .`, then the authors' numbers."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    for packages in ([f"torch=={version('torch').split('+')[0]}"], [wheel, "pytest"]):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    shutil.copytree(ROOT / "tests", tmp_path / "checkout" / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = [python, "-m", "pytest", "-q", "tests/withdrawal/test_withdraw.py", "-k", "golden"]
    done = subprocess.run(command, cwd=tmp_path / "checkout", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.nightly
def test_the_oracles_hold_with_older_and_newer_versions():
    from tests import versions

    assert versions.main([]) == 0
