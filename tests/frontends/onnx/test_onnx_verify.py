"""Comparing ONNX models: equal ones pass, small real errors fail, odd models do not crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, TensorProto

from repfuse.errors import NotEquivalentError, RepfuseError
from repfuse.frontends.onnx import sources
from repfuse.frontends.onnx.sources import as_floats, move_bits, open_source
from repfuse.frontends.onnx.verify import assert_equivalent, measure, verify
from tests.frontends.onnx.models import (
    ELEMS,
    MISTAKES,
    Shape,
    external,
    model_of,
    network,
    node,
    one,
)

INT = int(TensorProto.INT64)
Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((1, 3, 9, 8), np.float32)


def floats(values: list[float]) -> Array:
    return np.array(values, np.float32)


def scaled(factor: float) -> ModelProto:
    weights = {"w": RNG.standard_normal((3, 4), np.float32), "f": floats([factor])}
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h f", "y")]
    return model_of(nodes, {"x": ["N", 3]}, {"y": ["N", 4]}, weights)


# --------------------------------------------------------------------------------- equal, and not


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_a_folded_network_is_equal(dtype: str) -> None:
    found = measure(network(dtype), network(dtype, folded=True))
    assert found.comparison.passed, str(found.comparison)
    assert [output.dtype for output in found.comparison.outputs] == [dtype] * 3
    assert all(output.original_error > 0.0 for output in found.comparison.outputs)
    engine = "ONNX Runtime" if dtype in ("float32", "float16") else "onnx.reference"
    assert found.engine.startswith(engine)
    assert found.draws == tuple({"x": s} for s in ((1, 3, 33, 46), (2, 3, 40, 37), (3, 3, 51, 34)))


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mistake_is_found(dtype: str, mistake: str) -> None:
    comparison = verify(network(dtype), network(dtype, folded=True, mistake=mistake))
    assert not any(output.passed for output in comparison.outputs), str(comparison)
    assert all(output.excess > 10.0 for output in comparison.outputs)


@pytest.mark.parametrize("mistake", ["border", "bias", "channel", "nan"])
def test_a_mistake_is_found_in_float16(mistake: str) -> None:
    assert not verify(network("float16"), network("float16", folded=True, mistake=mistake)).passed


def test_a_model_equals_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    for other in (path, str(path), network()):
        comparison = verify(path, other)
        assert comparison.passed
        assert all(output.max_abs <= output.original_error for output in comparison.outputs)


def test_assert_equivalent_raises_with_the_table() -> None:
    assert assert_equivalent(network(), network(folded=True)).passed
    with pytest.raises(NotEquivalentError, match=r"(?s)3 of 3 outputs differ.*tolerance.*FAILS"):
        assert_equivalent(network(), network(folded=True, mistake="bias"))


def test_the_same_seed_gives_the_same_numbers() -> None:
    models = network(), network(folded=True)
    assert verify(*models, seed=3) == verify(*models, seed=3)
    assert verify(*models, seed=3) != verify(*models, seed=4)


def test_the_factor_decides() -> None:
    reference, candidate = scaled(1.0), scaled(1.0)
    candidate.graph.initializer[0].CopyFrom(reference.graph.initializer[0])
    candidate.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(floats([1 + 3e-6]), "f"))
    assert not verify(reference, candidate).passed
    assert verify(reference, candidate, factor=100.0).passed


def test_neither_model_is_changed() -> None:
    models = network(), network(folded=True)
    before = [model.SerializeToString(deterministic=True) for model in models]
    verify(*models)
    assert [model.SerializeToString(deterministic=True) for model in models] == before


# ------------------------------------------------------------------------------------------ inputs


def test_inputs_that_are_given() -> None:
    models = network(), network(folded=True)
    kept = IMAGE.copy()
    for inputs in (IMAGE, {"x": IMAGE}):
        (output,) = verify(*models, inputs).outputs
        assert (output.name, output.shape) == ("r2", (1, 8, 9, 8))
    several = verify(*models, [IMAGE, IMAGE[:, :, :5]]).outputs
    assert [output.name for output in several] == ["draw 0: r2", "draw 1: r2"]
    assert np.array_equal(IMAGE, kept)
    shaped = measure(*models, shapes={"x": (1, 3, 7, 6)}, draws=2)
    assert shaped.draws == ({"x": (1, 3, 7, 6)},) * 2


def test_draws_have_to_be_some() -> None:
    with pytest.raises(RepfuseError, match="draws is 0: give a whole number from 1 on"):
        verify(network(), network(), draws=0)


def test_a_fixed_head_decides_the_sizes() -> None:
    weights = {"s": np.array([0, 3 * 224 * 224]), "w": np.ones((3 * 224 * 224, 2), np.float32)}
    nodes = [node("Reshape", "x s", "h"), node("MatMul", "h w", "y")]
    model = model_of(nodes, {"x": ["N", 3, "H", "W"]}, {"y": None}, weights)
    assert [draw["x"][2:] for draw in measure(model, model).draws] == [(224, 224)] * 3


def test_whole_numbers_for_a_small_table() -> None:
    weights = {"table": RNG.standard_normal((3, 4), np.float32)}
    nodes = [node("Gather", "table ids", "y")]
    model = model_of(nodes, {"ids": ["N", "T"]}, {"y": None}, weights, elems={"ids": INT})
    assert verify(model, model).passed


# ---------------------------------------------------------------------------------- interface, runs


def test_another_interface_is_not_equal() -> None:
    comparison = verify(one("Relu", ("N", 3)), one("Relu", (1, 3)))
    assert [(o.name, o.note) for o in comparison.outputs] == [
        ("input 'x'", "Nx3 in the reference, 1x3 in the candidate")
    ]
    assert not comparison.passed


def test_a_candidate_that_does_not_run_where_the_reference_does_is_not_equal() -> None:
    nodes = [node("Reshape", "x s", "h"), node("Reshape", "h t", "y")]
    weights = {"s": np.array([-1, 3]), "t": np.array([-1, 3])}
    candidate = model_of(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, weights)
    candidate.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 6]), "s"))
    reference = model_of([node("Identity", "x", "y")], {"x": ["N", 3]}, {"y": ["N", 3]})
    first, second, _ = verify(reference, candidate).outputs
    assert "the candidate cannot run on x=1x3: node h_node (Reshape)" in first.note
    assert second.passed


def test_models_that_cannot_be_run() -> None:
    custom = one("Swish", domain="my.own")
    custom.opset_import.add(domain="my.own", version=3)
    broken = model_of(
        [node("Reshape", "x s", "y")], {"x": [2, 3]}, {"y": None}, {"s": np.array([7])}
    )
    for reference, candidate, message in (
        (custom, custom, r"the reference cannot be loaded: .*my.own:Swish.*custom operator"),
        (one("Identity"), custom, r"the candidate cannot be loaded.*my.own:Swish"),
        (broken, broken, r"no runnable input shape was found \(cannot run on x=2x3: node y_node"),
        (3, custom, "the reference is a int, not an ONNX model or its path"),
    ):
        with pytest.raises(RepfuseError, match=message) as raised:
            verify(reference, candidate)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
        assert not isinstance(raised.value, NotEquivalentError)


# ---------------------------------------------------------------------------- whole numbers, NaN


def argmax(dtype: str = "float32", ties: bool = False) -> ModelProto:
    """The largest of ten channels at every position; ties: channels that rounding tells apart."""
    kernel = RNG.standard_normal((10, 3, 3, 3))
    if ties:
        kernel = kernel[:1] * (1 + 1e-9 * kernel)
    weights = {"w": kernel.astype(np.dtype(dtype))}
    nodes = [
        node("Conv", "x w", "h", pads=[1] * 4),
        node("ArgMax", "h", "y", axis=1, keepdims=0),
    ]
    inputs: dict[str, Shape | None] = {"x": ["N", 3, "H", "W"]}
    outputs: dict[str, Shape | None] = {"y": ["N", "H", "W"]}
    return model_of(nodes, inputs, outputs, weights, elem=ELEMS[dtype], elems={"y": INT})


def with_weight(model: ModelProto, change: Callable[[Any], Any]) -> ModelProto:
    """The model with another value of its first weight."""
    other = ModelProto()
    other.CopyFrom(model)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    changed = onnx.numpy_helper.from_array(np.ascontiguousarray(change(weight)), "w")
    other.graph.initializer[0].CopyFrom(changed)
    return other


def ulps(weight: Any) -> Any:
    bits = weight.view(f"i{weight.itemsize}").copy()
    elem = int(onnx.helper.np_dtype_to_tensor_dtype(weight.dtype))
    move_bits(bits, elem, np.random.default_rng(77))
    return bits.view(weight.dtype)


def test_an_argmax_has_to_be_equal() -> None:
    model = argmax()
    assert verify(model, model).passed
    comparison = verify(model, with_weight(model, lambda weight: np.roll(weight, 1, 0)))
    assert not any(output.passed for output in comparison.outputs)
    assert "values differ" in comparison.outputs[0].note


def test_an_argmax_that_rounding_flips_may_differ_a_little_and_says_so() -> None:
    model = argmax("float16")
    comparison = verify(model, with_weight(model, ulps), draws=6)
    assert comparison.passed, str(comparison)
    assert any("rounding alone decides" in output.remark for output in comparison.outputs)


def test_an_argmax_that_is_all_rounding_shows_nothing() -> None:
    model = argmax(ties=True)
    comparison = verify(model, with_weight(model, ulps))
    assert not any(output.passed for output in comparison.outputs)
    assert "and rounding alone changes some as well" in comparison.outputs[0].note


def test_nan_and_infinity_have_to_be_in_the_same_places() -> None:
    log = one("Log")
    assert verify(log, log).passed  # NaN for negative inputs
    zero, small = ({"c": floats([value])} for value in (0.0, 1e-30))
    models = [
        model_of([node("Div", "x c", "h"), node("Log", "h", "y")], {"x": ["N", 3]}, {"y": None}, w)
        for w in (zero, small)
    ]
    assert "NaN or Inf in only one" in verify(*models).outputs[0].note


def test_nan_of_which_the_reference_itself_is_not_sure() -> None:
    """Whether the zeros of a padded border times NaN are NaN depends on how a convolution runs."""
    weight = RNG.standard_normal((4, 4, 3, 3), np.float32)
    weight[0, 0, 0, 0] = np.nan
    nodes = [node("Conv", "x w", "a", pads=[1] * 4), node("Conv", "x v", "b")]
    nodes += [node("Add", "a b", "h"), node("Relu", "h", "y")]
    weights = {"w": weight, "v": RNG.standard_normal((4, 4, 1, 1), np.float32)}
    dims: Shape = ["N", 4, "H", "W"]
    model = model_of(nodes, {"x": dims}, {"y": dims}, weights)
    comparison = verify(model, model)
    assert comparison.passed, str(comparison)
    assert "values are NaN or Inf, so these are not judged" in comparison.outputs[0].remark
    spoilt = with_weight(model, lambda weight: np.full_like(weight, np.nan))
    assert not verify(model, spoilt).passed


# ------------------------------------------------------------------------------------- odd models


def test_an_output_that_is_given_twice() -> None:
    model = network()
    model.graph.output.append(model.graph.output[0])
    assert verify(model, model).passed
    assert not verify(model, network()).passed


def test_dropout_in_training_mode_drops_the_same_in_both_models() -> None:
    weights = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    nodes = [node("Dropout", "x ratio training", "y")]
    model = model_of(nodes, {"x": ["N", 30]}, {"y": None}, weights)
    assert verify(model, model).passed
    old = model_of([node("Dropout", "x", "y", ratio=0.5)], {"x": ["N", 3]}, {"y": None}, opset=10)
    assert verify(old, old).passed  # where it has no seed


def test_an_input_with_a_default_value() -> None:
    weights = {"w": np.ones((1, 3), np.float32)}
    inputs: dict[str, Shape | None] = {"x": ["N", 3], "w": [1, 3]}
    model = model_of([node("Mul", "x w", "y")], inputs, {"y": None}, weights)
    frozen = model_of([node("Identity", "x", "y")], inputs, {"y": None}, weights)
    assert verify(model, model).passed and verify(model, frozen).passed
    given = {"x": np.ones((2, 3), np.float32), "w": np.full((1, 3), 2.5, np.float32)}
    assert verify(model, model, given).passed
    assert not verify(model, frozen, given).passed
    assert not verify(model, one("Identity")).passed


def test_all_rows_of_a_table_are_looked_at() -> None:
    table = RNG.standard_normal((1000, 4), np.float32)
    nodes = [node("Gather", "w ids", "y")]
    shapes: dict[str, Shape | None] = {"ids": ["N", "T"]}
    model = model_of(nodes, shapes, {"y": None}, {"w": table}, elems={"ids": INT})
    assert verify(model, model).passed
    head = with_weight(model, lambda table: np.concatenate([table[:8], -table[8:]]))
    assert not any(output.passed for output in verify(model, head).outputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1: give a whole number from 0 on"),
        ({"seed": 1.5}, "seed is 1.5: give a whole number from 0 on"),
        ({"draws": "3"}, "draws is '3': give a whole number from 1 on"),
        ({"factor": 0.0}, "the factor is 0.0: give a finite number above 0"),
        ({"factor": float("nan")}, "the factor is nan: give a finite number above 0"),
        ({"shapes": {"x": "1x3x5x5"}}, "the shape of input 'x' is '1x3x5x5'"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RepfuseError, match=message):
        verify(network(), network(), **options)


def test_an_element_type_that_is_not_known() -> None:
    model = one("Identity")
    model.graph.input[0].type.tensor_type.elem_type = 4711
    for candidate in (model, one("Identity")):
        try:
            comparison = verify(model, candidate)
        except RepfuseError as error:
            assert "\n" not in str(error)
        else:
            assert "unknown element type 4711 in the reference" in str(comparison)


def test_random_numbers_are_the_same_in_both_models() -> None:
    nodes = [node("RandomNormalLike", "x", "n"), node("Add", "x n", "y")]
    model = model_of(nodes, {"x": ["N", 3]}, {"y": None})
    more = model_of([node("Identity", "x", "i"), *nodes], {"x": ["N", 3]}, {"y": None})
    assert verify(model, more).passed
    assert not verify(model, one("Identity")).passed


def test_a_model_without_inputs_and_one_without_nodes() -> None:
    weights = {"w": np.ones(3, np.float32)}
    constant = model_of([node("Neg", "w", "y")], {}, {"y": [3]}, weights)
    assert verify(constant, constant).passed
    empty = model_of([], {"x": ["N", 3]}, {"x": ["N", 3]})
    assert verify(empty, empty).passed


def test_sequences_and_unused_weights() -> None:
    made = onnx.helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    model = model_of([node("SplitToSequence", "x", "y", axis=1)], {"x": ["N", 3]}, {})
    model.graph.output.append(made)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    comparison = verify(model, model, draws=1)
    assert [output.name for output in comparison.outputs] == ["y[0]", "y[1]", "y[2]"]
    assert comparison.passed


def test_sizes_that_are_computed_from_floats_do_not_stop_the_moved_runs() -> None:
    weights = {
        "scales": floats([1, 1, 1.5, 1.5]),
        "w": RNG.standard_normal((2, 3, 1, 1), np.float32),
    }
    resize = model_of(
        [node("Conv", "x w", "h"), onnx.helper.make_node("Resize", ["h", "", "scales"], ["y"])],
        {"x": ["N", 3, "H", "W"]},
        {"y": None},
        weights,
    )
    assert verify(resize, resize).passed
    nodes = [node("Mul", "f g", "s"), node("Cast", "s", "n", to=INT), node("Expand", "x n", "y")]
    weights = {"f": floats([1.5, 1.5]), "g": floats([4 / 3, 2.0])}
    computed = model_of(nodes, {"x": [1, 1]}, {"y": None}, weights)
    assert verify(computed, computed).passed


def test_bfloat16_in_onnx_runtime() -> None:
    model = model_of([node("Relu", "x", "y")], {"x": [2, 3]}, {"y": [2, 3]}, elem=ELEMS["bfloat16"])
    cast = model_of([node("Identity", "x", "y")], {"x": [2, 3]}, {"y": [2, 3]}, elem=16)
    assert verify(cast, cast).outputs[0].dtype == "bfloat16"
    assert not verify(cast, model).passed


# ---------------------------------------------------------------------------- weights elsewhere


def test_external_weights_are_moved_as_well(tmp_path: Path) -> None:
    weight = RNG.standard_normal((30, 4), np.float32)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(external(weight, location="w.bin").SerializeToString())
    inside = onnx.load(outside)
    errors = [verify(model, model, draws=1).outputs[0] for model in (outside, inside)]
    assert errors[0] == errors[1]
    assert verify(outside, inside).passed
    inside.graph.initializer[0].raw_data = (weight * 1.001).tobytes()
    assert not verify(outside, inside).passed


def test_large_weights_inside_of_a_file_go_to_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = verify(network(), network(folded=True))
    monkeypatch.setattr(sources, "DETACHED", 100)
    monkeypatch.setattr(sources, "LARGE", 100)
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    for model in (path, network()):
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        source = open_source(model, "reference", scratch)
        assert source.folder == scratch
        assert not any(len(t.raw_data) >= 100 for t in source.model.graph.initializer)
        assert verify(model, network(folded=True)) == expected
    assert onnx.load(path) == network()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_floats_move_by_at_most_an_ulp_and_whole_numbers_stay(dtype: str) -> None:
    elem = ELEMS[dtype]
    kind: Any = onnx.helper.tensor_dtype_to_np_dtype(elem)
    values = np.concatenate(
        [RNG.standard_normal(1000), [0.0, -0.0, 1.0, -3.0, np.inf, -np.inf, np.nan]]
    ).astype(kind)
    bits = values.view(f"i{kind.itemsize}").copy()
    before = bits.copy()
    move_bits(bits, int(elem), np.random.default_rng(0), chunk=64)
    steps = bits - before
    assert set(steps[:1000]) == {-1, 0, 1}
    assert 0.4 < np.mean(steps[:1000] != 0) < 0.6
    assert not steps[1000:].any()
    assert np.isfinite(as_floats(bits, int(elem))[:1000]).all()
