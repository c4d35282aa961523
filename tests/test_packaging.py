"""What is installed is what is in the checkout: package list, wheel, constraints, import bans."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import repfuse

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]


def python_files() -> set[Path]:
    """Every module of the checkout as the path it is installed at; the link is not followed."""
    own = {path.relative_to(ROOT) for path in (ROOT / "repfuse").rglob("*.py")}
    passes = {"repfuse" / path.relative_to(ROOT) for path in (ROOT / "passes").rglob("*.py")}
    return own | passes


def test_every_folder_with_python_in_it_is_a_listed_package() -> None:
    packages = {".".join(path.parent.parts) for path in python_files()}

    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages
    assert {package.replace(".", "/") + "/__init__.py" for package in packages} <= {
        path.as_posix() for path in python_files()
    }


def test_the_link_to_the_passes_is_relative() -> None:
    link = ROOT / "repfuse" / "passes"

    # Where git makes no links, its text is in a file, and the mapping alone finds the passes.
    assert (link.readlink().as_posix() if link.is_symlink() else link.read_text()) == "../passes"


@pytest.fixture(scope="module", params=["wheel of the checkout", "wheel of its sdist"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout that holds nothing but the unpacked wheel."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("repfuse", "passes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)

    # Given no target, build makes an sdist and then the wheel of that sdist.
    target = ["--wheel"] if request.param == "wheel of the checkout" else []
    command = [sys.executable, "-m", "build", "--no-isolation", *target, "--outdir", "dist"]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    [wheel] = (copy / "dist").glob("*.whl")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(elsewhere)
    return elsewhere


def test_the_wheel_holds_every_module_and_the_type_marker(installed: Path) -> None:
    files = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}

    [metadata] = installed.glob("*.dist-info")
    held = {path for path in files if path.parts[0] != metadata.name}
    assert held == python_files() | {Path("repfuse/py.typed")}
    assert metadata.relative_to(installed) / "licenses" / "LICENSE" in files


def test_the_wheel_imports_from_elsewhere(installed: Path) -> None:
    program = (
        "import json, repfuse, repfuse.passes\n"
        "print(json.dumps([repfuse.__version__, repfuse.__file__, repfuse.passes.__file__]))"
    )
    version, *files = json.loads(python(program, installed))

    assert version == PROJECT["version"]
    assert files == [
        str(installed / "repfuse" / name) for name in ("__init__.py", "passes/__init__.py")
    ]


def test_the_version_is_the_same_in_the_code() -> None:
    assert repfuse.__version__ == PROJECT["version"]


def test_importing_repfuse_imports_no_framework() -> None:
    program = "import json, sys, repfuse, repfuse.passes; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(python(program, ROOT)))

    assert "repfuse.passes" in modules
    assert not modules & {
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxruntime",
        "onnx_graphsurgeon",
    }


def python(program: str, folder: Path) -> str:
    """What a fresh interpreter prints that finds packages in `folder` before all others."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("folder", "line", "code"),
    [
        ("tests", "import passes", "TID251"),
        ("tests", "from passes.fold_affine import fold_affine", "TID251"),
        ("repfuse/frontends/torch", "from passes import PIPELINE", "TID251"),
        ("repfuse", "from . import rules", "TID252"),
        ("passes", "import torch", "TID253"),
        ("repfuse", "import onnx", "TID253"),
        ("tests", "from repfuse.passes import PIPELINE", None),
        ("tests", "import torch", None),
        ("repfuse/frontends/torch", "import torch", None),
    ],
)
def test_imports_that_break_the_layout_are_banned(folder: str, line: str, code: str | None) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select=TID", "--output-format=json"]
    done = subprocess.run(
        [*command, f"--stdin-filename={folder}/snippet.py", "-"],
        input=line + "\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)

    assert [finding["code"] for finding in found] == ([code] if code else [])
    if code == "TID251":
        assert "repfuse.passes" in found[0]["message"]


def test_the_constraints_pin_what_the_extras_ask_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}

    asked = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, chain.from_iterable(asked)):
        if requirement.name != PROJECT["name"]:
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier
