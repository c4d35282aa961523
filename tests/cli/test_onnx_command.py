"""repfuse-onnx: what it prints and writes, and that bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from repfuse.cli import fusing
from repfuse.cli.onnx import main
from repfuse.frontends.onnx.write import write_model
from tests.frontends.onnx.build import Net

NOISE = np.random.default_rng(0)


def block(channels: int = 8, opset: int = 18) -> ModelProto:
    """conv3x3 + BN, conv1x1 + BN and a BN skip, added; then a Relu."""
    nodes, stored = [], []

    def constant(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        values = NOISE.uniform(low, high, shape).astype(np.float32)
        stored.append(numpy_helper.from_array(values, name))
        return name

    def norm(source: str, name: str) -> str:
        parts = [constant(f"{name}.{part}", channels) for part in ("scale", "bias", "mean")]
        parts.append(constant(f"{name}.var", channels, low=0.5, high=2.0))
        nodes.append(helper.make_node("BatchNormalization", [source, *parts], [name], name=name))
        return name

    def conv(name: str, size: int) -> str:
        weight = constant(f"{name}.weight", channels, channels, size, size)
        pads = [size // 2] * 4
        nodes.append(helper.make_node("Conv", ["x", weight], [name], name=name, pads=pads))
        return norm(name, f"{name}.norm")

    terms = [conv("conv3", 3), conv("conv1", 1), norm("x", "skip")]
    nodes.append(helper.make_node("Sum", terms, ["total"], name="total"))
    nodes.append(helper.make_node("Relu", ["total"], ["y"], name="act"))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "block", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(block(), path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["repfuse-onnx", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_a_block_becomes_one_conv(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = source.read_bytes()
    out = source.with_name("out.onnx")
    assert run(monkeypatch, source, out) == 0
    assert kinds(out) == {"Conv": 1, "Relu": 1}
    assert source.read_bytes() == before
    printed = capsys.readouterr().out
    for text in ("1 region merged", "BatchNormalization", "MACs", "equal: ", f"wrote {out}"):
        assert text in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["in.onnx", "out.onnx"]


def test_quiet_prints_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, source, source.with_name("out.onnx"), "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_a_plan_writes_no_model(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, source, "--plan", "--report", source.with_name("plan.json")) == 0
    assert "1 region merged" in capsys.readouterr().out
    found = json.loads(source.with_name("plan.json").read_text())
    assert found["before"]["nodes"]["BatchNormalization"] == 3
    assert "after" not in found
    assert not list(source.parent.glob("*.onnx.*"))


def gated(channels: int = 8) -> ModelProto:
    """Two convs, each times a factor of its own of each sample, added."""
    net = Net(opset=17)
    x = net.input(dims=("N", channels, "H", "W"))
    mean, terms = net.node("GlobalAveragePool", x), []
    for _ in range(2):
        factor = net.node("Sigmoid", net.conv(mean, channels, 1, 1))
        terms.append(net.node("Mul", net.conv(x, channels, channels), factor))
    return net.model(net.relu(net.add(*terms)))


def test_factors_of_the_input_are_looked_into_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, report = (tmp_path / name for name in ("in.onnx", "out.onnx", "report.json"))
    onnx.save(gated(), source)
    assert run(monkeypatch, source, out) == 0
    assert kinds(out)["Conv"] == 4
    assert "(--dynamic) makes it one Conv 3x3 8->8" in capsys.readouterr().out
    assert run(monkeypatch, source, out, "--dynamic", "--report", report) == 0
    assert (kinds(out)["Conv"], kinds(out)["Scan"]) == (2, 1)
    printed = capsys.readouterr().out
    assert "equal: " in printed
    found = json.loads(report.read_text())
    assert found["dynamic"] is True
    assert found["check"]["passed"] is True
    assert run(monkeypatch, source, "--plan", "--dynamic") == 0
    assert "1 region merged" in capsys.readouterr().out


def test_the_report_holds_plan_and_check(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, report = source.with_name("out.onnx"), source.with_name("report.json")
    assert run(monkeypatch, source, out, "--report", report, "--seed", 7) == 0
    found = json.loads(report.read_text())
    assert found["after"]["nodes"] == {"Conv": 1, "Relu": 1}
    assert found["after"]["bytes"] == out.stat().st_size
    assert found["check"]["passed"] is True
    assert found["seed"] == 7
    assert len(found["plan"]["regions"]) == 1


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ("z=1x8x5x5", "in.onnx has no input 'z': its inputs are 'x' (nx8xhxw)"),
        ("x=1x9x5x5", "in.onnx: input 'x' is nx8xhxw, 1x9x5x5 was given"),
        ("x=1x8x5", "in.onnx: input 'x' is nx8xhxw, 1x8x5 was given"),
        ("x=scalar", "in.onnx: input 'x' is nx8xhxw, scalar was given"),
        ("1x5x5x8", "in.onnx: input 'x' is nx8xhxw, 1x5x5x8 was given"),
    ],
)
def test_a_plan_refuses_the_shape_of_no_input(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shape: str,
    fault: str,
) -> None:
    assert run(monkeypatch, source, "--plan", "--input", shape) == 2
    assert capsys.readouterr() == ("", f"repfuse-onnx: error: {fault}\n")


@pytest.mark.parametrize("options", [["--input", "x=1x8x5x6"], ["--inputs", "x.npz"]])
def test_inputs_may_be_given(
    source: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(source.parent)
    np.savez("x.npz", x=NOISE.standard_normal((2, 8, 5, 7)).astype(np.float32))
    assert run(monkeypatch, "in.onnx", "out.onnx", *options) == 0


def test_weights_may_lie_beside_the_model(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = source.with_name("out.onnx")
    assert run(monkeypatch, source, out, "--save-external") == 0
    assert out.with_name("out.onnx.data").stat().st_size >= 8 * 8 * 9 * 4
    assert kinds(out) == {"Conv": 1, "Relu": 1}
    # ... and are read from there, and written beside the next model without being asked for.
    again = source.with_name("again.onnx")
    assert run(monkeypatch, out, again) == 0
    assert again.with_name("again.onnx.data").exists()


def test_a_conv_less_model_comes_back_equal(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.with_name("out.onnx")
    assert run(monkeypatch, source, out, "-q") == 0
    again = source.with_name("again.onnx")
    assert run(monkeypatch, out, again) == 0
    assert "nothing to merge" in capsys.readouterr().out
    assert kinds(again) == kinds(out)


def test_onnxsim_may_go_first(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = source.with_name("out.onnx")
    assert run(monkeypatch, source, out, "--simplify") == 0
    assert kinds(out) == {"Conv": 1, "Relu": 1}


def test_a_result_that_differs_is_not_written(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that spoils a weight stands for any mistake that only the check can find."""
    real = write_model

    def spoil(patched: object, path: Path, *rest: object) -> None:
        real(patched, path, *rest)  # type: ignore[arg-type]
        model = onnx.load(path)
        weight = model.graph.initializer[0]
        values = numpy_helper.to_array(weight) * np.float32(1.001)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr(fusing, "write_model", spoil)
    out = source.with_name("out.onnx")
    out.write_bytes(b"the user's own")
    assert run(monkeypatch, source, out) == 1
    assert "NOT EQUAL: nothing was written" in capsys.readouterr().out
    assert out.read_bytes() == b"the user's own"
    assert not list(source.parent.glob(".repfuse*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def no_model(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n this is no model")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cyclic(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].input[0] = "y"
    path.write_bytes(model.SerializeToString())


def dangling(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].input[1] = "nowhere"
    path.write_bytes(model.SerializeToString())


def without_data(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=0)
    path.with_name("w").unlink()


def unknown_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[-1].domain = "private"
    model.opset_import.append(helper.make_opsetid("private", 1))
    path.write_bytes(model.SerializeToString())


def no_shape_runs(path: Path) -> None:
    """The input is flattened into a fixed number that no guess gives."""
    model = onnx.load(path)
    shape = numpy_helper.from_array(np.array([1, 8 * 1237 * 1229]), "flat")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["y", "flat"], ["z"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())


# What is done to the file, and words of the one line that says so.
BAD_FILES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (Path.unlink, ("in.onnx", "does not exist")),
    "empty": (empty, ("in.onnx", "is empty")),
    "another format": (no_model, ("in.onnx", "is not an ONNX file")),
    "cut short": (cut, ("in.onnx", "cut short")),
    "cyclic": (cyclic, ("in.onnx", "conv3", "cycle")),
    "a dangling edge": (dangling, ("in.onnx", "conv3", "nowhere")),
    "external data missing": (without_data, ("in.onnx", "missing")),
    "an unknown operator": (unknown_operator, ("in.onnx", "private", "Relu")),
    "no shape runs": (no_shape_runs, ("in.onnx", "--input NAME=SHAPE")),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    fault: str,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, words = BAD_FILES[fault]
    spoil(source)
    out = source.with_name("out.onnx")
    before = {path.name for path in source.parent.iterdir()}
    assert run(monkeypatch, source, out) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("repfuse-onnx: error: ")
    for word in words:
        assert word in printed.err
    assert {path.name for path in source.parent.iterdir()} == before


# Arguments after IN, with the folder of IN as {}, and words of the line.
BAD_USE = {
    "no OUT": ([], "OUT is missing"),
    "OUT and --plan": (["{}/out.onnx", "--plan"], "leave out OUT"),
    "OUT is IN": (["{}/in.onnx"], "same file"),
    "OUT is IN by another way": (["{}/../{name}/in.onnx"], "same file"),
    "OUT is a folder": (["{}"], "is a folder"),
    "OUT in no folder": (["{}/none/out.onnx"], "no folder"),
    "the report is IN": (["{}/out.onnx", "--report", "{}/in.onnx"], "read as well"),
    "the report is OUT": (["{}/out.onnx", "--report", "{}/out.onnx"], "same file"),
    "a bad shape": (["{}/out.onnx", "--input", "x=1xtwo"], "x=1xtwo"),
    "an unknown input": (["{}/out.onnx", "--input", "z=1x8x5x5"], "'z'"),
    "no arrays": (["{}/out.onnx", "--inputs", "{}/none.npz"], "none.npz"),
    "an unknown target": (["{}/out.onnx", "--target", "fpga"], "fpga"),
    "an unknown option": (["{}/out.onnx", "--fast"], "--fast"),
    "a negative seed": (["{}/out.onnx", "--seed", "-1"], "--seed"),
}


@pytest.mark.parametrize("use", BAD_USE)
def test_bad_use_is_one_line_and_leaves_nothing(
    use: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = source.read_bytes()
    arguments, words = BAD_USE[use]
    folder = source.parent
    texts = [text.format(folder, name=folder.name) for text in arguments]
    assert run(monkeypatch, source, *texts) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["in.onnx"]
    assert source.read_bytes() == before


def test_weights_of_the_input_are_not_overwritten(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(source)
    onnx.save(model, source, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    weights = source.with_name("out.onnx.data")
    before = weights.read_bytes()
    assert run(monkeypatch, source, source.with_name("out.onnx")) == 2
    assert "holds weights" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_the_input_may_not_be_named_as_the_weights_of_the_result(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = source.rename(source.with_name("out.onnx.data"))
    before = named.read_bytes()
    assert run(monkeypatch, named, source.with_name("out.onnx"), "--save-external") == 2
    assert named.read_bytes() == before
    assert [path.name for path in source.parent.iterdir()] == ["out.onnx.data"]


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("out.onnx", ["--save-external", "--report", "out.onnx.data"]),
        ("x.npz", ["--inputs", "x.npz"]),
        ("out.onnx", ["--inputs", "x.npz", "--report", "x.npz"]),
    ],
)
def test_nothing_that_is_read_or_written_besides_is_written_over(
    source: Path, monkeypatch: pytest.MonkeyPatch, out: str, options: list[str]
) -> None:
    monkeypatch.chdir(source.parent)
    np.savez("x.npz", x=NOISE.standard_normal((2, 8, 5, 7)).astype(np.float32))
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    assert run(monkeypatch, "in.onnx", out, *options) == 2
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before


def test_what_is_not_understood_is_said(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("within")

    monkeypatch.setattr("repfuse.frontends.onnx.plan.parts_of", fail)
    assert run(monkeypatch, source, source.with_name("out.onnx")) == 0
    assert "the model: it is not understood, and stays as it is" in capsys.readouterr().out
    assert kinds(source.with_name("out.onnx")) == kinds(source)


def test_an_unexpected_fault_shows_a_traceback_only_for_debugging(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("within")

    monkeypatch.setattr(fusing, "plan_model", fail)
    out = source.with_name("out.onnx")
    assert run(monkeypatch, source, out) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run(monkeypatch, source, out, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    assert [path.name for path in source.parent.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(source: Path, how: signal.Signals) -> None:
    """The signal comes during the check, when the file is written but has no name yet."""
    wait = (
        "import sys, time\n"
        "from repfuse.cli import onnx\n"
        "from repfuse.frontends.onnx import verify\n"
        "def hang(*_, **__):\n"
        "    print('checking', flush=True); time.sleep(60)\n"
        "verify.measure = hang\n"
        "onnx.main()\n"
    )
    command = [sys.executable, "-c", wait, str(source), str(source.with_name("out.onnx"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"checking\n"
        assert list(source.parent.glob(".repfuse-*"))
        time.sleep(0.2)
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == b"repfuse-onnx: interrupted"
    assert [path.name for path in source.parent.iterdir()] == ["in.onnx"]


def test_it_never_imports_torch(source: Path) -> None:
    """In a process in which torch cannot be imported, as where it is not installed."""
    script = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'timm'):\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import repfuse\n"
        "from repfuse.cli.onnx import main\n"
        "main()\n"
    )
    out = source.with_name("out.onnx")
    command = [sys.executable, "-c", script, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert kinds(out) == {"Conv": 1, "Relu": 1}


def test_help_is_quick_and_teaches() -> None:
    script = (
        "import sys, time\n"
        "sys.argv = ['repfuse-onnx', '--help']\n"
        "from repfuse.cli.onnx import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'networkx', 'rich', 'torch'} & set(sys.modules)\n"
        "print('imported', sorted(heavy))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout
    assert "Exit codes:" in done.stdout
    assert "imported []" in done.stdout
