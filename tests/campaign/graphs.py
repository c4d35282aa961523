"""Random ONNX graphs of the campaign: made and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto

import repfuse
from repfuse.report import Report
from tests.campaign.deadly import ends_the_process
from tests.campaign.gaps import refused
from tests.campaign.modules import TARGETS
from tests.campaign.outcome import ALL, Outcome, Share, Wrong, note
from tests.campaign.program import DEFAULT, Options
from tests.campaign.promises import broken, in_file
from tests.frontends.onnx.build import nodes_of
from tests.frontends.onnx.cases import same_interface
from tests.frontends.onnx.evaluate import (
    Sizes,
    difference,
    outputs_of,
    random_feeds,
    runner_of,
    with_floats,
)
from tests.frontends.onnx.random_graphs import RandomGraph
from tests.frontends.onnx.wrap import as_function, as_if, as_loop

__all__ = ["RandomFile", "check_graph", "check_running", "copied", "random_file"]

ELEMS = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
# By the type: how far off an output may be, and how much is left of what cancels.
BOUNDS = {"float64": 1e-9, "float32": 1e-3, "float16": 0.2, "bfloat16": 0.5}
SLACK = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.5}
RUNTIME = 23  # the opset up to which ONNX Runtime has all layers
LOWEST = 22  # the opset since which layers take bfloat16
WRAPPED = 0.1  # the share of graphs that become a function, or a body of an If or a Loop


@dataclass(frozen=True)
class RandomFile:
    """A model, the sizes at which it runs, and how to fuse it."""

    model: ModelProto
    sizes: tuple[Sizes, ...]
    options: Options = DEFAULT

    @property
    def opset(self) -> int:
        return int(self.model.opset_import[0].version)

    def nodes(self) -> list[NodeProto]:
        return nodes_of(self.model)


def random_file(seed: int) -> RandomFile:
    """A graph of its own, or one inside of another."""
    graph = RandomGraph(seed)
    model, dice = graph.model(), graph.dice
    opset = graph.net.opset
    if model.ir_version >= 4 and dice.random() < WRAPPED:
        ways = [as_if] + [as_function] * (opset >= 9) + [as_loop] * (opset >= 11)
        way = dice.choice(ways)
        model = way(model)
        if way is not as_if and dice.random() < 0.3:
            model = as_if(model)
    rounds = any(node.op_type == "QuantizeLinear" for node in nodes_of(model))
    narrow = ["float32", "float32", "float16", *["bfloat16"] * (opset >= LOWEST)]
    options = Options(
        target=dice.choice(TARGETS),
        dynamic=dice.random() < 0.15,
        dtype=dice.choice(narrow) if dice.random() < 0.1 and not rounds else "float64",
    )
    return RandomFile(with_floats(model, ELEMS[options.dtype]), graph.sizes, options)


def check_graph(file: RandomFile, share: Share = ALL) -> Outcome:
    """Fuse one graph; raises Wrong, naming what does not hold."""
    model, options, outcome = file.model, file.options, Outcome()
    onnx.checker.check_model(model)
    plan, result = _fused(copied(model), options, inplace=True)
    report = plan.report
    try:
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:
        onnx.checker.check_model(model, full_check=True)
        raise Wrong("ONNX: the result is no valid model", error) from error
    _must("ONNX: the interface changed", same_interface, model, result)
    if options.dtype != "float64":
        outcome.done[_accepted(file, result)] += 1
    reference = _Reference(file)
    reference.compare("ONNX: not equal", result)
    if not report.regions and result != model:
        raise Wrong("ONNX: the plan has no region, and something changed", result.graph.name)
    fault = broken(report, in_file(model), in_file(result), in_file(model, read=True))
    if fault:
        raise Wrong("ONNX: the plan says something else than was done", fault)
    again = repfuse.plan(result, **options.planned())
    if again.report.regions:
        outcome.unsettled = _reason(model, report)
        twice = again.apply()
        reference.compare("ONNX: fused twice, not equal", twice)
    if share.again:
        outcome.done["ONNX planned twice, also not in place"] += 1
        _same_again(model, options, report, result)
    if share.sizes:
        outcome.done["ONNX of an empty batch"] += reference.compare_empty(result)
    if share.verified:
        outcome.done["ONNX from a file, its weights beside it"] += 1
        _from_disk(model, options, result)
    note(outcome, report)
    return outcome


def check_running(file: RandomFile, share: Share = ALL) -> Outcome:
    """As `check_graph`, where the graph itself runs: one that was made small need not, and what
    is wrong with it then is another thing."""
    _Reference(file)
    return check_graph(file, share)


class _Reference:
    """What the original gives for random inputs of each size. Raises where it does not run."""

    def __init__(self, file: RandomFile) -> None:
        self.file = file
        self.bound = BOUNDS[file.options.dtype]
        self.runner = runner_of(file.model)
        self.feeds = [random_feeds(file.model, one, i) for i, one in enumerate(file.sizes)]
        self.expected = [outputs_of(self.runner, feed) for feed in self.feeds]
        difference(self.expected[0], self.expected[0])  # raises where a value is not finite

    def compare(self, kind: str, other: ModelProto) -> None:
        self._compare(kind, other, self.feeds, self.expected)

    def compare_empty(self, other: ModelProto) -> int:
        """No sample at all; 0 where the original does not run on that, or gives the mean of
        nothing: statistics of the batch, say."""
        (first, *_) = self.file.model.graph.input
        if all(dim.dim_param != "N" for dim in first.type.tensor_type.shape.dim):
            return 0
        feeds = [random_feeds(self.file.model, {**self.file.sizes[0], "N": 0})]
        try:
            expected = [outputs_of(self.runner, feeds[0])]
            difference(expected[0], expected[0])  # raises where a value is not finite
        except Exception:
            return 0
        self._compare("ONNX: not equal for an empty batch", other, feeds, expected)
        return 1

    def _compare(self, kind: str, other: ModelProto, feeds: Any, expected: Any) -> None:
        try:
            runner = runner_of(other)
            for feed, reference in zip(feeds, expected, strict=True):
                apart = difference(reference, outputs_of(runner, feed))
                assert apart <= self.bound, f"relative difference {apart:.3g}"
        except Exception as error:
            raise Wrong(kind, f"{type(error).__name__}: {error}") from error


def _same_again(model: ModelProto, options: Options, report: Report, result: ModelProto) -> None:
    """A second fuse, which makes a copy, gives the same, and leaves the original as it was."""
    before = _bytes(model)
    plan, other = _fused(model, options)
    if _bytes(model) != before:
        raise Wrong("ONNX: the original changed", plan)
    if plan.report.to_dict() != report.to_dict():
        raise Wrong("ONNX: a second plan of the same says something else", plan)
    if _bytes(other) != _bytes(result):
        raise Wrong("ONNX: a second fuse of the same gives another file", plan)


def _from_disk(model: ModelProto, options: Options, result: ModelProto) -> None:
    """The same model as a file whose weights are external data is fused to the same."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        beside: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 256}
        onnx.save(copied(model), path, location="weights", **beside)
        try:
            other = repfuse.plan(path, **options.planned()).apply()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise Wrong("ONNX: raises, given as a file", text) from error
    if _bytes(other) != _bytes(result):
        raise Wrong("ONNX: the same as a file gives another one", other.graph.name)


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _fused(model: ModelProto, options: Options, inplace: bool = False) -> tuple[Any, ModelProto]:
    try:
        plan = repfuse.plan(model, **options.planned())
        said = plan.report.to_dict()
        result = plan.apply(inplace)
    except Exception as error:
        raise Wrong("ONNX: raises", f"{type(error).__name__}: {error}") from error
    if plan.report.errors:
        raise Wrong("ONNX: a rewrite failed its probe", plan.report.errors[0])
    if plan.report.to_dict() != said:
        raise Wrong("ONNX: the plan says something else once it was applied", plan)
    return plan, result


def _accepted(file: RandomFile, result: ModelProto) -> str:
    """The gate for equivalence accepts it, where it can run the original; what was done."""
    dtype, feeds = file.options.dtype, None
    done = f"ONNX in {dtype}"
    if ends_the_process(file.model):
        return f"{done}, of which ONNX Runtime dies"
    if ends_the_process(result):
        raise Wrong("ONNX: ONNX Runtime dies of it, and not of the original", result.graph.name)
    if dtype != "float32" or file.opset > RUNTIME:  # what runs where ONNX Runtime does not is slow
        kind = onnx.helper.tensor_dtype_to_np_dtype(ELEMS[dtype])
        feeds = [
            {name: array.astype(kind) for name, array in random_feeds(file.model, one, i).items()}
            for i, one in enumerate(file.sizes)
        ]
    try:
        found = repfuse.verify(file.model, result, feeds)
    except repfuse.RepfuseError as error:
        if "candidate" in str(error):
            raise Wrong("ONNX: repfuse.verify cannot run it", error) from error
        return done
    if fault := refused(found, SLACK[dtype]):
        raise Wrong("ONNX: repfuse.verify does not accept it", fault)
    return done


def _reason(model: ModelProto, report: Report) -> str:
    """Why a second fuse finds more, as far as the first plan tells."""
    if "shape-is-read" in report.ids:
        return "a shape is read"
    moved = any(node.op_type == "Transpose" for node in nodes_of(model))
    return "axes are moved" if moved else "other"


def _must(kind: str, check: Callable[..., None], *args: object) -> None:
    try:
        check(*args)
    except Exception as error:
        raise Wrong(kind, f"{type(error).__name__}: {error}") from error


def copied(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied
