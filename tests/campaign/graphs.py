"""Random ONNX graphs of the campaign: made, checked and, where they fail, made small."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import ModelProto

from tests.campaign.checks import Outcome, Wrong
from tests.frontends.onnx.cases import fused, same_interface
from tests.frontends.onnx.evaluate import Sizes, assert_same, in_double
from tests.frontends.onnx.random_graphs import RandomGraph
from tests.frontends.onnx.wrap import as_function, as_if

__all__ = ["check_graph", "random_graph", "shrink_graph"]

WRAPPED = 0.1  # the share of graphs that become a function, or the branch of an If


def random_graph(seed: int) -> tuple[ModelProto, tuple[Sizes, ...]]:
    """A model in float64, and the sizes at which it runs."""
    graph = RandomGraph(seed)
    model = graph.model()
    if graph.dice.random() < WRAPPED:
        model = graph.dice.choice((as_function, as_if))(model)
    return in_double(model), graph.sizes


def check_graph(model: ModelProto, sizes: tuple[Sizes, ...]) -> Outcome:
    """Fuse one graph; raises Wrong, naming what does not hold."""
    onnx.checker.check_model(model)
    try:
        result, report = fused(model)
    except AssertionError as error:
        raise Wrong("ONNX: a rewrite failed its probe, or the model changed", error) from error
    except Exception as error:
        raise Wrong("ONNX: raises", f"{type(error).__name__}: {error}") from error
    try:
        onnx.checker.check_model(result)
    except Exception as error:
        raise Wrong("ONNX: the result is no valid model", error) from error
    _must("ONNX: the interface changed", same_interface, model, result)
    _must("ONNX: not equal", assert_same, model, result, 1e-9, sizes)
    again, _ = fused(result)
    stable = again == result
    if not stable:
        _must("ONNX: fused twice, not equal", assert_same, model, again, 1e-9, sizes)
    if not report.regions and result != model:
        raise Wrong("ONNX: the plan has no region, and something changed", result.graph.name)
    outcome = Outcome(len(report.regions), stable=stable)
    outcome.refusals.update(refusal.rule for refusal in report.refusals)
    return outcome


def _must(kind: str, check: Callable[..., None], *args: object) -> None:
    try:
        check(*args)
    except AssertionError as error:
        raise Wrong(kind, error) from error


def shrink_graph(model: ModelProto, fails: Callable[[ModelProto], bool]) -> ModelProto:
    """Leave out outputs and nodes, each replaced by its first input, while it still fails."""
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(model.graph.output))):
            smaller = _copy(model)
            del smaller.graph.output[index]
            if len(model.graph.output) > 1 and fails(_without_dead(smaller)):
                model, changed = _without_dead(smaller), True
        for index in reversed(range(len(model.graph.node))):
            if index >= len(model.graph.node):
                continue
            for place in range(len(model.graph.node[index].input)):
                shorter = _bypassed(model, index, place)
                if shorter is not None and fails(shorter):
                    model, changed = shorter, True
                    break
    return model


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _bypassed(model: ModelProto, index: int, place: int) -> ModelProto | None:
    """One node less: what reads it reads one of its inputs."""
    node = model.graph.node[index]
    stored = {tensor.name for tensor in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    source = node.input[place]
    if not source or source in stored or len(node.output) != 1 or node.output[0] in outputs:
        return None
    smaller = _copy(model)
    del smaller.graph.node[index]
    for reader in smaller.graph.node:
        for slot, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[slot] = source
    return _without_dead(smaller)


def _without_dead(model: ModelProto) -> ModelProto:
    """Without nodes and weights that nothing reads; shapes that were told may be wrong now."""
    graph = model.graph
    del graph.value_info[:]
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {output.name for output in graph.output}
        dead = [node for node in graph.node if not read.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return model
