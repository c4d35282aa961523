"""Reading ONNX files: what is taken as it is, and one clear line for what cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.constants import read_tensor
from repfuse.frontends.onnx.files import (
    check_model,
    data_files,
    external_range,
    read_model,
    tensors_of,
)
from repfuse.frontends.onnx.light import without_values
from tests.frontends.onnx.models import external, model_of, network, node, one

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def fault(path: Path) -> str:
    """What is said of a file that cannot be used, without its name."""
    with pytest.raises(RepfuseError) as raised:
        read_model(path)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path)).strip(" :")


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    model = network()
    assert read_model(saved(model, tmp_path)) == model
    assert read_model(str(saved(model, tmp_path))) == model


# ------------------------------------------------------------------------------- not an ONNX file


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.onnx") == "does not exist"
    assert fault(tmp_path) == "is a folder: name the .onnx file in it"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert fault(tmp_path / ("a" * 300)) == "cannot be read: File name too long"
    for name, message in (("\udcff.onnx", r"'.*\\udcff.onnx' is no name"), ("a\0b", "null")):
        with pytest.raises(RepfuseError, match=message):
            read_model(tmp_path / name)


def test_the_files_that_hold_weights(tmp_path: Path) -> None:
    assert data_files(network(), tmp_path) == set()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert data_files(external(WEIGHT, location="w.bin"), tmp_path) == {tmp_path / "w.bin"}


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 and so on", b"\x80\x02}q\x00", b"<html><body>404</body></html>", b"\x00" * 64],
    ids=["zip", "pickle", "html", "zeros"],
)
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert fault(path).startswith("is not an ONNX file")


def test_a_file_that_ends_early_at_any_place(tmp_path: Path) -> None:
    whole = network().SerializeToString()
    path = tmp_path / "model.onnx"
    for size in (0, 2, 30, 100, len(whole) // 2, len(whole) - 5, len(whole) - 1):
        path.write_bytes(whole[:size])
        said = fault(path)
        assert any(word in said for word in ("empty", "cut short", "ends before the graph")), said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "ir_version", 99), "has IR version 99, the installed onnx"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "uses opset 99 of 'ai.onnx', the in"),
        (lambda m: m.ClearField("opset_import"), "names no opset"),
    ],
)
def test_versions(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = network()
    change(model)
    assert fault(saved(model, tmp_path)).startswith(message)


# ---------------------------------------------------------------------------------- invalid graphs


def cyclic() -> ModelProto:
    nodes = [node("Add", "x b", "y"), node("Relu", "y", "b")]
    return model_of(nodes, {"x": ["N", 3]}, {"y": None})


def short_weight() -> ModelProto:
    model = network()
    tensor = model.graph.initializer[6]
    tensor.raw_data = tensor.raw_data[:-4]
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (cyclic(), "node y_node (Add) reads 'b', which no node before it makes: the graph has a c"),
        (one("Relu", alpha=1.0), "node y_node (Relu): Unrecognized attribute: alpha"),
        (one("Rely"), "node y_node (Rely): No Op registered for Rely"),
        (one("Conv"), "has input size 1 not in range"),
        (model_of([node("Relu", "z", "y")], {"x": [1]}, {"y": None}), "(Relu) reads 'z'"),
        (model_of([node("Relu", "x", "y")], {"x": [1]}, {"q": None}), "Graph output 'q' is not an"),
        (short_weight(), "'w1' has 2300 bytes of 2304"),
    ],
)
def test_what_the_checker_rejects(model: ModelProto, message: str, tmp_path: Path) -> None:
    said = fault(saved(model, tmp_path))
    assert said.startswith("is not a valid model: ") and message in said


def test_what_is_unusual_and_valid(tmp_path: Path) -> None:
    custom = one("Swish", domain="my.own")
    custom.opset_import.add(domain="my.own", version=3)
    microsoft = one("Gelu", domain="com.microsoft")
    microsoft.opset_import.add(domain="com.microsoft", version=1)
    for model in (custom, microsoft, model_of([], {"x": ["N", 3]}, {"x": ["N", 3]})):
        assert read_model(saved(model, tmp_path)) == model


def test_more_or_less_values_than_the_shape_has(tmp_path: Path) -> None:
    """The checker misses what is too long, and whatever is in a body."""
    for stored, said in (
        ({"raw_data": bytes(16)}, "16 bytes of 12"),
        ({"float_data": [1.0] * 4}, "4 values of 3"),
        ({"float_data": [1.0] * 2}, "2 values of 3"),
    ):
        tensor = TensorProto(name="w", data_type=1, dims=[3], **stored)
        nodes = [node("Constant", "", "w", value=tensor), node("Add", "x w", "y")]
        model = model_of(nodes, {"x": ["N", 3]}, {"y": None})
        assert f"tensor 'w' has {said}" in fault(saved(model, tmp_path))
    for kind, count in ((TensorProto.COMPLEX64, 6), (TensorProto.INT4, 2), (TensorProto.BOOL, 3)):
        tensor = TensorProto(name="w", data_type=kind, dims=[3])
        field = tensor.float_data if kind == TensorProto.COMPLEX64 else tensor.int32_data
        field.extend([1] * count)
        nodes = [node("Constant", "", "w", value=tensor), node("Shape", "w", "s")]
        model = model_of(nodes, {"x": ["N"]}, {"s": None}, elems={"s": TensorProto.INT64}, opset=21)
        read_model(saved(model, tmp_path))


@pytest.mark.parametrize("where", ["input", "node", "initializer"])
def test_a_name_that_is_no_text(where: str, tmp_path: Path) -> None:
    model = network()
    getattr(model.graph, where)[0].name = "QQQQ"
    path = saved(model, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xff\xfe\xc0\x80"))
    assert "holds a name that is no UTF-8" in fault(path)


def test_functions_that_double_and_double(tmp_path: Path) -> None:
    """Two hundred bytes a level; written out, it is more than any machine holds."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(40):
        called = [f"F{level + 1}"] * 2 if level < 39 else ["Relu", "Relu"]
        domain = "local" if level < 39 else ""
        nodes = [
            helper.make_node(called[0], ["x"], ["t"], domain=domain),
            helper.make_node(called[1], ["t"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("local", f"F{level}", ["x"], ["y"], nodes, imports))
    model = model_of(
        [node("F0", "x", "y", domain="local")], {"x": ["N"]}, {"y": ["N"]}, domains={"local": 1}
    )
    model.opset_import[0].version = 17
    model.functions.extend(functions)
    assert fault(saved(model, tmp_path)).startswith("has 1e+12 nodes once each call")
    del model.functions[:30]
    model.graph.node[0].op_type = "F30"
    read_model(saved(model, tmp_path))


def test_a_device_is_not_read() -> None:
    assert fault(Path("/dev/zero")) == "is a device: name an ONNX file"


# ----------------------------------------------------------------------------------- external data


def test_external_values_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 16 + WEIGHT.tobytes())
    model = external(WEIGHT, location="w.bin", offset="16", length="48")
    read = read_model(saved(model, tmp_path))
    assert read == model
    (tensor,) = tensors_of(read)
    assert external_range(tensor, tmp_path) == (tmp_path / "w.bin", 16, 48)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "no file is named"),
        ({"location": "none.bin"}, "none.bin is missing: put it next to the model"),
        ({"location": "w.bin", "offset": "16"}, "is cut short: it has 48 bytes, 64 are needed"),
        ({"location": "w.bin", "length": "44"}, "it needs 48 bytes, but 44 bytes are external"),
        ({"location": "w.bin", "length": "64"}, "it needs 48 bytes, but 64 bytes are external"),
        ({"location": "w.bin", "offset": "-4"}, "the offset of its external data is '-4', no num"),
        ({"location": "w.bin", "offset": "much"}, "is 'much', no number of bytes"),
        ({"location": "w.bin", "offset": "1_6"}, "is '1_6', no number of bytes"),
        ({"location": "w.bin", "offset": " 16 "}, "is ' 16 ', no number of bytes"),
        ({"location": "w.bin", "length": "٤٨"}, "no number of bytes"),
        ({"location": "w.bin", "length": "9" * 99}, "no number of bytes"),
        ({"location": "w\0.bin"}, "cannot be opened (embedded null"),
        ({"location": "w" * 5000}, "cannot be opened (File name too long)"),
        ({"location": "ring.bin"}, "cannot be opened ("),
        ({"location": "../w.bin"}, "'../w.bin' are outside of the model's folder: copy model and"),
        ({"location": "/etc/passwd"}, "'/etc/passwd' are outside of the model's folder"),
        ({"location": "link.bin"}, "'link.bin' are outside of the model's folder"),
        ({"location": "."}, "outside of the model's folder"),
    ],
)
def test_external_values_that_cannot_be_used(
    entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "ring.bin").symlink_to("ring.bin")
    said = fault(saved(external(WEIGHT, **entries), folder))
    assert said.startswith("tensor 'w': ") and message in said


def test_external_values_that_are_described_twice(tmp_path: Path) -> None:
    """Readers differ in which of two entries counts: one would be checked, and the other read."""
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = external(WEIGHT, location="../secret.bin")
    model.graph.initializer[0].external_data.add(key="location", value="w.bin")
    assert "described twice" in fault(saved(model, tmp_path))


def test_external_values_without_a_length_end_where_the_tensor_does(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes() + b"\1" * 999)
    (tensor,) = tensors_of(read_model(saved(external(WEIGHT, location="w.bin"), tmp_path)))
    assert (read_tensor(tensor, tmp_path) == WEIGHT).all()


def test_a_tensor_in_segments(tmp_path: Path) -> None:
    model = network()
    model.graph.initializer[0].segment.begin = 0
    assert "'w0' is in segments" in fault(saved(model, tmp_path))


def test_a_tensor_inside_of_a_node_is_checked_as_well(tmp_path: Path) -> None:
    weight = external(WEIGHT, location="none.bin").graph.initializer[0]
    nodes = [node("Constant", "", "w", value=weight), node("MatMul", "x w", "y")]
    said = fault(saved(model_of(nodes, {"x": ["N", 3]}, {"y": None}), tmp_path))
    assert "none.bin is missing" in said


# ------------------------------------------------------------------------------------------ copies


def test_checking_changes_nothing(tmp_path: Path) -> None:
    model = network()
    before = model.SerializeToString(deterministic=True)
    check_model(model, "model", tmp_path)
    assert model.SerializeToString(deterministic=True) == before


def test_a_copy_without_values_is_otherwise_the_same() -> None:
    model = network()
    model.metadata_props.add(key="license", value="MIT")
    model.doc_string = "a network"
    assert without_values(model, lambda tensor: False) == model
    light = without_values(model, lambda tensor: tensor.name == "w1")
    tensors = {tensor.name: tensor for tensor in light.graph.initializer}
    assert tensors["w1"] == TensorProto(name="w1", data_type=1, dims=[8, 8, 3, 3])
    assert tensors["w2"] == model.graph.initializer[12]
    assert onnx.numpy_helper.to_array(model.graph.initializer[6]).shape == (8, 8, 3, 3)
