"""Interfaces and random inputs: names, dynamic sizes, types, and what users give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.inputs import Feeds, check_fit, derive, given, parse_shapes, read_npz
from repfuse.frontends.onnx.interface import (
    Port,
    differences,
    inputs_of,
    outputs_of,
    overridable_of,
)
from repfuse.frontends.onnx.sizes import rows_of
from tests.frontends.onnx.models import Shape, model_of, network, node

FLOAT, INT = int(TensorProto.FLOAT), int(TensorProto.INT64)


def port(name: str, dims: Shape | None, elem: int = FLOAT) -> Port:
    return Port(name, elem, None if dims is None else tuple(dims))


def runs_anywhere(feeds: Feeds) -> str:
    return ""


def shapes_of(draws: list[Feeds]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: value.shape for name, value in draw.items()} for draw in draws]


def drawn(
    *ports: Port, runs: Callable[[Feeds], str] = runs_anywhere, **options: Any
) -> list[dict[str, tuple[int, ...]]]:
    return shapes_of(derive(ports, runs, name="m.onnx", **options))


# --------------------------------------------------------------------------------------- interface


def test_the_interface_of_a_model() -> None:
    model = network()
    assert inputs_of(model) == [port("x", ("N", 3, "H", "W"))]
    assert outputs_of(model) == [port("r2", ("N", 8, "H", "W"))]
    assert inputs_of(model)[0].shape_text == "Nx3xHxW"
    assert inputs_of(model)[0].type_name == "float"


def test_an_initializer_that_is_an_input_need_not_be_given() -> None:
    weights = {"w": np.ones((3, 3), np.float32)}
    inputs: dict[str, Shape | None] = {"x": ["N", 3], "w": [3, 3]}
    model = model_of([node("MatMul", "x w", "y")], inputs, {"y": None}, weights)
    assert [port.name for port in inputs_of(model)] == ["x"]


def overridable(*names: str, held: bool = True, ir_version: int = 10) -> ModelProto:
    """y = x + w, where w is an input for each name; held: where w has a value anyway."""
    weights = {"w": np.ones((1, 3), np.float32)} if held else {}
    inputs: dict[str, Shape | None] = {"x": ["N", 3], **{name: [1, 3] for name in names}}
    made = model_of([node("Add", "x w", "y")], inputs, {"y": None}, weights)
    made.ir_version = ir_version
    return made


def test_an_input_with_a_default_value_belongs_to_the_interface() -> None:
    free, fixed, asked = overridable("w"), overridable(), overridable("w", held=False)
    assert overridable_of(free) == [Port("w", FLOAT, (1, 3), default=True)]
    assert differences(free, free) == []
    assert differences(free, fixed) == [("input 'w'", "missing in the candidate")]
    assert differences(fixed, free) == [("input 'w'", "only in the candidate")]
    (gap,) = differences(free, asked)
    assert gap == ("input 'w'", "it has a default value in the reference only")
    (gap,) = differences(asked, free)
    assert gap == ("input 'w'", "it has a default value in the candidate only")


def test_before_version_4_every_initializer_is_an_input_and_has_no_other_value() -> None:
    old, new = overridable("w", ir_version=3), overridable()
    assert overridable_of(old) == []
    assert differences(old, new) == differences(new, old) == []


def test_a_value_for_an_input_with_a_default() -> None:
    x, w = np.ones((2, 3), np.float32), np.full((1, 3), 5.0, np.float32)
    ports, free = inputs_of(overridable("w")), overridable_of(overridable("w"))
    assert list(given(ports, {"x": x, "w": w}, "m.onnx", free)[0]) == ["x", "w"]
    for inputs in (x, {"x": x}):
        assert list(given(ports, inputs, "m.onnx", free)[0]) == ["x"]
    with pytest.raises(RepfuseError, match=r"'w' \(1x3, may be left out\); given are w"):
        given(ports, {"w": w}, "m.onnx", free)
    with pytest.raises(RepfuseError, match="input 'w' is 1x3, 2x3 was given"):
        given(ports, {"x": x, "w": x}, "m.onnx", free)


def test_an_output_that_is_given_twice_belongs_to_the_interface() -> None:
    once = overridable()
    twice = overridable()
    twice.graph.output.append(once.graph.output[0])
    assert differences(twice, twice) == []
    assert differences(twice, once) == [("output 'y'", "2 times, 1 in the candidate")]


def test_an_element_type_that_is_not_known() -> None:
    strange = port("x", (2,), 4711)
    assert strange.type_name == "unknown element type 4711"
    with pytest.raises(RepfuseError, match="input 'x' is a tensor of unknown element type 4711"):
        drawn(strange)
    with pytest.raises(RepfuseError, match="input 'x' is a tensor of unknown element type 4711"):
        given([strange], np.ones(2), "m.onnx")


def test_sizes_of_zero_and_below_are_dynamic() -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    assert inputs_of(model)[0].dims == (None, 3, None, "W")


def test_inputs_that_are_no_tensors() -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("s", FLOAT, None)
    model = model_of([node("SequenceLength", "s", "y")], {}, {"y": []}, elem=INT)
    model.graph.input.append(sequence)
    (found,) = inputs_of(model)
    assert found.type_name == "sequence of float"
    with pytest.raises(RepfuseError, match="'s' is a sequence of float, for which no values can"):
        drawn(found)


def pair(inputs: dict[str, Shape | None], outputs: dict[str, Shape | None], **o: Any) -> Any:
    return model_of(
        [node("Identity", next(iter(inputs)), next(iter(outputs)))], inputs, outputs, **o
    )


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (pair({"x": ["N", 3], "z": [1]}, {"y": ["N", 3]}), []),
        (pair({"x": ["batch", 3], "z": [1]}, {"y": ["batch", 3]}), []),
        (pair({"x": ["N", 3], "z": [1]}, {"y": None}), []),
        (pair({"x": ["N", 3]}, {"y": ["N", 3]}), ["input 'z': missing in the candidate"]),
        (
            pair({"x": ["N", 3], "z": [1], "q": [1]}, {"y": ["N", 3]}),
            ["input 'q': only in the candidate"],
        ),
        (
            pair({"z": [1], "x": ["N", 3]}, {"y": ["N", 3]}),
            ["inputs: another order: x, z in the reference, z, x in the candidate"],
        ),
        (
            pair({"x": [1, 3], "z": [1]}, {"y": ["N", 3]}),
            ["input 'x': Nx3 in the reference, 1x3 in the candidate"],
        ),
        (
            pair({"x": ["N", 3], "z": [1]}, {"y": ["N", 3]}, elems={"z": INT}),
            ["input 'z': float in the reference, int64 in the candidate"],
        ),
        (
            pair({"x": ["N", 3], "z": [1]}, {"y": ["N", 3, 1]}),
            ["output 'y': Nx3 in the reference, Nx3x1 in the candidate"],
        ),
        (
            pair({"x": ["N", 3], "z": [1]}, {"w": ["N", 3]}),
            ["output 'y': missing in the candidate", "output 'w': only in the candidate"],
        ),
    ],
)
def test_differences_between_interfaces(candidate: Any, said: list[str]) -> None:
    reference = pair({"x": ["N", 3], "z": [1]}, {"y": ["N", 3]})
    assert [f"{name}: {how}" for name, how in differences(reference, candidate)] == said


# ------------------------------------------------------------------------------------------- sizes


def test_images_take_batches_odd_and_even_sizes_and_are_not_square() -> None:
    shapes = [shape["x"] for shape in drawn(port("x", ("N", 3, "H", "W")))]
    assert shapes == [(1, 3, 33, 46), (2, 3, 40, 37), (3, 3, 51, 34)]


@pytest.mark.parametrize(
    ("dims", "elem", "shape"),
    [
        ((2, 3, 8, 9), FLOAT, (2, 3, 8, 9)),
        ((None, 3, None, None), FLOAT, (1, 3, 33, 46)),
        (("N", "H", "W", 3), FLOAT, (1, 33, 46, 3)),
        (("N", 4, "D", "H", "W"), FLOAT, (1, 4, 33, 46, 21)),
        (("N", 80, "T"), FLOAT, (1, 80, 33)),
        (("N", "T", 80), FLOAT, (1, 7, 80)),
        (("N", "T"), INT, (1, 7)),
        ((), FLOAT, ()),
    ],
)
def test_sizes_by_place(dims: Shape, elem: int, shape: tuple[int, ...]) -> None:
    assert drawn(port("x", dims, elem), draws=1) == [{"x": shape}]


def test_a_symbol_is_one_size_in_all_inputs_and_so_is_an_unnamed_place() -> None:
    (shapes,) = drawn(port("x", ("N", "T", 8)), port("m", ("N", "T"), INT), draws=1)
    assert shapes == {"x": (1, 7, 8), "m": (1, 7)}
    (shapes,) = drawn(port("x", (None, None), INT), port("m", (None, None), INT), draws=1)
    assert shapes["x"] == shapes["m"]
    given_one = drawn(
        port("x", ("N", "T", 8)), port("m", ("N", "T"), INT), draws=1, shapes={"m": (5, 11)}
    )
    assert given_one == [{"x": (5, 11, 8), "m": (5, 11)}]


def test_sizes_that_the_model_does_not_run_on_are_replaced() -> None:
    def strided(feeds: Feeds) -> str:
        return "" if all(size % 32 == 0 for size in feeds["x"].shape[2:]) else "odd"

    def exact(feeds: Feeds) -> str:
        return "" if feeds["x"].shape[2:] == (224, 224) else "not 224"

    def single(feeds: Feeds) -> str:
        return "" if feeds["x"].shape[0] == 1 else "more than one image"

    images = port("x", ("N", 3, "H", "W"))
    assert drawn(images, runs=strided) == [
        {"x": (1, 3, 96, 160)},
        {"x": (2, 3, 160, 96)},
        {"x": (3, 3, 224, 96)},
    ]
    assert drawn(images, runs=exact) == [{"x": (1, 3, 224, 224)}] * 3
    assert [shape["x"][0] for shape in drawn(images, runs=single)] == [1, 1, 1]


def test_no_size_that_runs() -> None:
    with pytest.raises(RepfuseError) as raised:
        drawn(port("x", ("N", 3, "H", "W")), runs=lambda feeds: "node c (Conv): too small")
    assert str(raised.value) == (
        "m.onnx: no runnable input shape was found (node c (Conv): too small): "
        "give one with --input NAME=SHAPE, or arrays with --inputs FILE.npz"
    )


def test_a_model_without_inputs_has_one_draw() -> None:
    assert drawn() == [{}]


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT32", "UINT8"])
def test_values_have_the_type_of_the_input(kind: str) -> None:
    elem = TensorProto.DataType.Value(kind)
    (draw,) = derive([port("x", (40, 40), elem)], runs_anywhere, name="m", draws=1)
    assert draw["x"].dtype == onnx.helper.tensor_dtype_to_np_dtype(elem)
    assert len(np.unique(draw["x"].astype(np.float64))) > 4


def test_values_are_seeded_and_differ_between_draws_and_inputs() -> None:
    ports = [port("x", (4, 4)), port("y", (4, 4))]
    first = derive(ports, runs_anywhere, name="m", draws=2)
    again = derive(ports, runs_anywhere, name="m", draws=2)
    other = derive(ports, runs_anywhere, name="m", draws=2, seed=1)
    assert all(np.array_equal(first[i][n], again[i][n]) for i in (0, 1) for n in "xy")
    arrays = [draw[name] for draw in (*first, *other) for name in "xy"]
    assert len({array.tobytes() for array in arrays}) == len(arrays)


def test_whole_numbers_are_small_enough_for_the_model() -> None:
    def table_of_two(feeds: Feeds) -> str:
        return "" if feeds["ids"].max() < 2 else "index out of range"

    (draw,) = derive([port("ids", (1, 50), INT)], table_of_two, name="m", draws=1)
    assert set(draw["ids"].ravel()) == {0, 1}


TABLE = np.zeros((500, 4), np.float32)
IDS: dict[str, Shape | None] = {"ids": ["N", "T"]}


def rows(*nodes: onnx.NodeProto, **weights: Any) -> dict[str, int]:
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    return rows_of(model_of(nodes, IDS, {"y": None}, arrays, elems={"ids": INT}))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rows(node("Gather", "E ids", "y"), E=TABLE), 500),
        (rows(node("Gather", "E ids", "y", axis=-1), E=TABLE), 4),
        (rows(node("GatherElements", "E ids", "y"), E=TABLE), 500),
        (
            rows(
                node("Constant", "", "E", value=onnx.numpy_helper.from_array(TABLE)),
                node("Gather", "E ids", "y"),
            ),
            500,
        ),
        (
            rows(
                node("Cast", "ids", "i", to=6),
                node("Unsqueeze", "i a", "u"),
                node("Gather", "E u", "y"),
                E=TABLE,
                a=[0],
            ),
            500,
        ),
        (
            rows(
                node("DequantizeLinear", "E s", "D"),
                node("Gather", "D ids", "y"),
                E=TABLE.astype(np.int8),
                s=np.float32(1),
            ),
            500,
        ),
        (
            rows(
                node("Gather", "E ids", "a"),
                node("Gather", "F ids", "b"),
                node("Add", "a b", "y"),
                E=TABLE,
                F=TABLE[:30],
            ),
            30,
        ),
        (rows(node("OneHot", "ids d v", "y"), d=40, v=np.zeros(2, np.float32)), 40),
        (rows(node("Neg", "E", "D"), node("Gather", "D ids", "y"), E=TABLE), 1000),
        (rows(node("Identity", "ids", "y")), None),
        (rows(node("Gather", "ids i", "y"), i=[0]), None),
        (rows(node("Gather", "E ids", "y", domain="my"), E=TABLE), None),
    ],
)
def test_inputs_that_are_indices_of_a_table(found: dict[str, int], expected: int | None) -> None:
    assert found.get("ids") == expected


def test_indices_are_of_all_rows_and_other_whole_numbers_small() -> None:
    ports = [port("ids", (1, 5000), INT), port("mask", (1, 5000), INT)]
    (draw,) = derive(ports, runs_anywhere, name="m", draws=1, rows={"ids": 500})
    assert (draw["ids"].min(), draw["ids"].max()) == (0, 499)
    assert set(draw["mask"].ravel()) == set(range(8))

    def one_mask(feeds: Feeds) -> str:
        return "" if feeds["mask"].max() < 2 else "no mask"

    (draw,) = derive(ports, one_mask, name="m", draws=1, rows={"ids": 500})
    assert draw["ids"].max() == 499

    def fewer(feeds: Feeds) -> str:
        return "" if feeds["ids"].max() < 120 else "out of range"

    (draw,) = derive(ports, fewer, name="m", draws=1, rows={"ids": 500})
    assert draw["ids"].max() == 99
    (draw,) = derive([port("ids", (4,), INT)], runs_anywhere, name="m", draws=1, rows={"ids": 1})
    assert not draw["ids"].any()


# -------------------------------------------------------------------------------- what users give


def test_shapes_from_the_command_line() -> None:
    texts = ["image=1x3x224x224", "ids=1,8", "a=b=2x2", "s=scalar", "5"]
    assert parse_shapes(texts) == {
        "image": (1, 3, 224, 224),
        "ids": (1, 8),
        "a=b": (2, 2),
        "s": (),
        "": (5,),
    }


@pytest.mark.parametrize("text", ["image=1x3xHxW", "image=", "x", "image=1x-3", "image=1.5"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(RepfuseError, match="is no shape: write --input NAME=1x3x224x224"):
        parse_shapes([text])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 3, 8, 8)}, r"m.onnx has no input 'y': its inputs are 'x' \(Nx3xHxW\)"),
        ({"x": (1, 4, 8, 8)}, r"m.onnx: input 'x' is Nx3xHxW, 1x4x8x8 was given"),
        ({"x": (1, 3)}, r"m.onnx: input 'x' is Nx3xHxW, 1x3 was given"),
        ({"x": (1, 3, -1, 5)}, r"input 'x' is \(1, 3, -1, 5\): give sizes like \(1, 3, 224, 224\)"),
        ({"x": "1x3x5x5"}, "input 'x' is '1x3x5x5': give sizes like"),
        ({"x": None}, "input 'x' is None: give sizes like"),
        ({"x": (1, 3, 2.5, 5)}, r"input 'x' is \(1, 3, 2.5, 5\): give sizes like"),
        ({3: (1, 3, 8, 8)}, "m.onnx has no input 3"),
        ((1, 3, 8, 8), r"shapes is \(1, 3, 8, 8\): give a dict of shapes by input name"),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, message: str) -> None:
    with pytest.raises(RepfuseError, match=message):
        drawn(port("x", ("N", 3, "H", "W")), shapes=shapes)


def test_shapes_for_the_costs_fit_the_inputs() -> None:
    image, mask = port("x", ("N", 3, "H", "W")), port("m", ("N", "T"), INT)
    for shapes in ((), {}, (1, 3, 8, 8), {"": (4, 5)}, {"x": (1, 3, 8, 8), "": (4, 5)}):
        check_fit([image, mask], shapes, "m.onnx")
    check_fit([port("x", None)], (1, 2), "m.onnx")
    faults: dict[str, Any] = {
        "no input 'y'": {"x": (1, 3, 8, 8), "y": (1,)},
        "no input 1x3x8: its inputs are 'x'": (1, 3, 8),
        "input 'm' is NxT, 3 was given": {"x": (1, 3, 8, 8), "": (3,)},
    }
    for fault, shapes in faults.items():
        with pytest.raises(RepfuseError, match=fault):
            check_fit([image, mask], shapes, "m.onnx")


def test_the_only_input_needs_no_name() -> None:
    assert drawn(port("x", ("N", "M")), shapes={"": (4, 5)}, draws=1) == [{"x": (4, 5)}]


def test_arrays_that_are_given() -> None:
    ports = [port("x", ("N", 3))]
    values = np.ones((2, 3))
    for inputs in (values, {"x": values}, [values], [{"x": values}]):
        (draw,) = given(ports, inputs, "m.onnx")
        assert draw["x"].dtype == np.float32
        assert draw["x"].shape == (2, 3)
    assert len(given(ports, [values, values[:1]], "m.onnx")) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "an empty list compares nothing"),
        ({"y": np.ones((2, 3))}, r"m.onnx has the inputs 'x' \(Nx3\); given are y"),
        ({"x": np.ones((2, 3)), 3: np.ones(1)}, r"m.onnx has the inputs .*; given are 3, x"),
        (np.ones((2, 4)), "input 'x' is Nx3, 2x4 was given"),
        (np.ones((2, 3), np.int64), "input 'x' is float, int64 was given"),
    ],
)
def test_arrays_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(RepfuseError, match=message):
        given([port("x", ("N", 3))], inputs, "m.onnx")


def test_one_array_for_two_inputs() -> None:
    with pytest.raises(RepfuseError, match=r"m\.onnx has 2 inputs: give a dict by name"):
        given([port("x", (1,)), port("y", (1,))], np.ones(1), "m.onnx")


def test_npz_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.ones(2), y=np.arange(3))
    assert list(read_npz(tmp_path / "good.npz")) == ["x", "y"]
    np.save(tmp_path / "one.npy", np.ones(2))
    (tmp_path / "text.npz").write_text("x=1")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name, message in (
        ("one.npy", "holds one array"),
        ("text.npz", "is no .npz file"),
        ("empty.npz", "is no .npz file"),
        ("cut.npz", "is no .npz file"),
        ("objects.npz", "is no .npz file"),
        ("none.npz", "does not exist"),
        (".", "cannot be read"),
    ):
        with pytest.raises(RepfuseError, match=message):
            read_npz(tmp_path / name)
