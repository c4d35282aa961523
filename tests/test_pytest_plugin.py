"""The fixture repfuse_equivalent, in test suites of users; and that pytest does not pay for it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import onnx
import pytest

from tests.frontends.onnx.models import network

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
TESTS = """
import numpy as np
import onnx

def test_equal(repfuse_equivalent):
    repfuse_equivalent("reference.onnx", "folded.onnx")

def test_models_and_arrays(repfuse_equivalent):
    images = np.ones((1, 3, 8, 6), np.float32)
    repfuse_equivalent(onnx.load("reference.onnx"), onnx.load("folded.onnx"), {"x": images})

def test_wrong(repfuse_equivalent):
    repfuse_equivalent("reference.onnx", "wrong.onnx", draws=1)

def test_loose(repfuse_equivalent):
    repfuse_equivalent("reference.onnx", "wrong.onnx", factor=1e6)

def test_missing(repfuse_equivalent):
    repfuse_equivalent("reference.onnx", "none.onnx")
"""
MODULES = """
import torch
from torch import nn

def test_modules(repfuse_equivalent):
    model = nn.Linear(3, 3)
    repfuse_equivalent(model, model, torch.ones(1, 3))
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run(suite: pytest.Pytester) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "repfuse.pytest_plugin", "-p", "no:cacheprovider")


def test_onnx_models(suite: pytest.Pytester) -> None:
    onnx.save(network(), suite.path / "reference.onnx")
    onnx.save(network(folded=True), suite.path / "folded.onnx")
    onnx.save(network(folded=True, mistake="scale"), suite.path / "wrong.onnx")
    suite.makepyfile(TESTS)
    result = run(suite)
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            '>       repfuse_equivalent("reference.onnx", "wrong.onnx", draws=1)',
            "E       repfuse.errors.NotEquivalentError: not equivalent: 1 of 1 outputs differ",
            "E       output *shape *tolerance",
            "E       r2 *FAILS: beyond the tolerance",
            "*RepfuseError: none.onnx does not exist",
        ]
    )
    assert "pytest_plugin.py" not in result.stdout.str().split("test_missing")[0]


def test_modules(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODULES)
    run(suite).assert_outcomes(passed=1)


def test_it_is_an_entry_point_that_imports_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"repfuse": "repfuse.pytest_plugin"}
    program = (
        "import sys, pytest; before = set(sys.modules); import repfuse.pytest_plugin\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "onnx", "onnxruntime", "numpy", "networkx", "rich"} & set(
        eval(done.stdout)
    )
