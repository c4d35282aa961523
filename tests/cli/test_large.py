"""A model above 2 GB, which only fits beside its file: fused, checked, and in how much memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CHANNELS, LAYERS = 4096, 33
MARGIN = 300e6
# The largest memory of a process counts that of the one which started it: here a small one.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def write_model(path: Path) -> int:
    """conv1x1, BN, Relu, many times; the conv weights lie beside the model. Returns its bytes."""
    noise = np.random.default_rng(0)
    nodes, stored, value = [], [], "x"
    with path.with_suffix(".weights").open("wb") as file:
        for layer in range(LAYERS):
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT)
            weight.dims.extend((CHANNELS, CHANNELS, 1, 1))
            weight.data_location = TensorProto.EXTERNAL
            for key, entry in (
                ("location", path.with_suffix(".weights").name),
                ("offset", file.tell()),
                ("length", 4 * CHANNELS**2),
            ):
                weight.external_data.add(key=key, value=str(entry))
            values = noise.standard_normal((CHANNELS, CHANNELS), np.float32) / np.float32(64)
            file.write(values.tobytes())
            stored.append(weight)
            names = [f"{part}{layer}" for part in ("scale", "bias", "mean", "var")]
            for name in names:
                low = 0.5 if name.startswith(("scale", "var")) else -1.0
                values = noise.uniform(low, 1.5, CHANNELS).astype(np.float32)
                stored.append(numpy_helper.from_array(values, name))
            conv, norm, act = (f"{kind}{layer}" for kind in ("conv", "norm", "act"))
            nodes += [
                helper.make_node("Conv", [value, f"w{layer}"], [conv]),
                helper.make_node("BatchNormalization", [conv, *names], [norm]),
                helper.make_node("Relu", [norm], [act]),
            ]
            value = act
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", CHANNELS, 1, 1])
        for name in ("x", value)
    ]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path.stat().st_size + path.with_suffix(".weights").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_above_2_gb_is_fused_in_little_more_than_its_size(tmp_path: Path) -> None:
    source, out = tmp_path / "large.onnx", tmp_path / "out.onnx"
    size = write_model(source)
    assert size > 2**31
    command = [sys.executable, "-m", "repfuse.cli.onnx", str(source), str(out)]
    measured = [sys.executable, "-c", MEASURE, *command]
    process = subprocess.run(measured, stdout=subprocess.PIPE, text=True, check=False)
    printed, _, kilobytes = process.stdout.strip().rpartition("\n")
    assert process.returncode == 0, printed
    assert f"{LAYERS} regions merged" in printed
    assert "equal: " in printed
    assert 1024 * int(kilobytes) <= 1.5 * size + MARGIN
    fused = onnx.load(out, load_external_data=False)
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu"] * LAYERS
    for path in tmp_path.iterdir():
        path.unlink()  # pytest keeps the folders of the last runs
