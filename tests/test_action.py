"""The GitHub Action: its description, its script, and how CI and the documentation use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs import make_outputs

yaml: Any = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "check" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
PAGE = ROOT / "docs" / "ci.md"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps_that_use_it(workflow: Any) -> list[Any]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step for step in steps if step.get("uses", "").partition("@")[0].endswith("/check")]


def test_every_step_is_complete() -> None:
    action = load(ACTION)
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert ("run" in step and step["shell"] == "bash") or "@" in step["uses"]
    keep = action["runs"]["steps"][-1]
    assert keep["uses"].startswith("actions/upload-artifact@")
    assert "always()" in keep["if"]


def test_inputs_reach_scripts_through_the_environment_alone() -> None:
    action = load(ACTION)
    text = ACTION.read_text("utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("source", ["ci", "page"])
def test_workflows_give_what_the_action_takes(source: str) -> None:
    pages = [text for language, text in make_outputs.blocks(PAGE) if language == "yaml"]
    workflow = load(WORKFLOW) if source == "ci" else yaml.safe_load(pages[0])
    inputs = load(ACTION)["inputs"]
    (step,) = steps_that_use_it(workflow)
    required = {name for name, about in inputs.items() if about.get("required")}
    assert required <= set(step["with"]) <= set(inputs)
    if source == "ci":
        assert (ROOT / step["uses"] / "action.yml").exists()


def test_the_page_lists_every_input_and_default() -> None:
    text = PAGE.read_text("utf-8")
    for name, about in load(ACTION)["inputs"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        if about.get("default"):
            assert f"`{about['default']}`" in row


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What CI exports with the example, as it calls it."""
    folder = tmp_path_factory.mktemp("job")
    command = next(
        step["run"]
        for step in load(WORKFLOW)["jobs"]["equivalence"]["steps"]
        if "examples/" in step.get("run", "")
    )
    program, script, *arguments = command.split()
    assert program == "python"
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("equivalent")
    return folder


def act(folder: Path, **inputs: str) -> int:
    """Run the script of the action as a runner would; the files it writes are in the folder."""
    script = next(step for step in load(ACTION)["runs"]["steps"] if step.get("id") == "check")[
        "run"
    ]
    program = folder / "repfuse-check"
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from repfuse.cli.check import main; main()" "$@"\n'
    )
    program.chmod(0o755)
    given = {"ARGS": "", "REPORT": "kept", **inputs}
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        Path(file).unlink(missing_ok=True)
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    environment = os.environ | given | files | paths
    return subprocess.run(
        shell, cwd=folder, env=environment, capture_output=True, check=False
    ).returncode


def test_what_ci_checks_is_equal(exported: Path) -> None:
    (step,) = steps_that_use_it(load(WORKFLOW))
    reference, candidate = step["with"]["reference"], step["with"]["candidate"]
    arguments = "--draws 1 --input image=1x3x20x30"
    assert act(exported, REFERENCE=reference, CANDIDATE=candidate, ARGS=arguments) == 0
    assert json.loads((exported / "kept" / "report.json").read_text())["passed"] is True
    assert (exported / "kept" / "report.xml").exists()
    assert "exit-code=0\n" in (exported / "GITHUB_OUTPUT").read_text()
    summary = (exported / "GITHUB_STEP_SUMMARY").read_text("utf-8")
    assert "scores" in summary and "equal: at most" in summary


def test_a_failed_check_fails_and_leaves_its_report(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "exported" / "fused.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("bias"))
    values = onnx.numpy_helper.to_array(bias) + 1
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, exported / "wrong.onnx")
    reference = "exported/reference.onnx"
    assert act(exported, REFERENCE=reference, CANDIDATE="wrong.onnx") == 1
    assert json.loads((exported / "kept" / "report.json").read_text())["passed"] is False
    assert "exit-code=1\n" in (exported / "GITHUB_OUTPUT").read_text()

    assert act(exported, REFERENCE=reference, CANDIDATE="none.onnx") == 2
    assert not (exported / "kept" / "report.json").exists()
    assert "none.onnx does not exist" in (exported / "GITHUB_STEP_SUMMARY").read_text()
