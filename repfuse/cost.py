"""What an operator costs: multiply-accumulates, memory read and written, launches.

The price of an operator is a sum of four, in multiply-accumulates (MACs) of a dense convolution:

* its MACs. Vector units compute `VECTOR` output channels of a group at once, or as many channels
  of a depthwise conv, and lanes without a channel idle: they cost as the target says. A depthwise
  conv reads each value for few MACs and has a price of its own, and so has a transposed one,
  which adds up what overlaps.
* `element` for each number read or written: activations and weights.
* `launch` for each operation that is started.
* `kernel` for each number of a kernel that is mixed for each sample: to write it, to bring it into
  the layout that a convolution wants, and to read it without any reuse; its MACs are `unpacked`
  times as dear where the layout of constant weights is made only once.

A merge of parallel branches may raise the MACs where the memory passes and launches that it
removes are worth more: then it has to save `MARGIN` of the price, and the MACs stay below
`ALLOWANCE` times what they were. One of operators in series may never, unless the operators are
timed or the fewest are asked for ("min-ops").

`TARGETS` are these weights for machines and aims. Those of the default, "cpu", were set against
measurements, for PyTorch in eager mode and for ONNX Runtime each: docs/cost-model.md. "measured" is
not among them: it times the operators, and has the weights of "cpu" for what cannot be timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from repfuse.errors import RepfuseError
from repfuse.graph import Concat, Gated, Graph, Node, Opaque, Producer, Sum, Value
from repfuse.operators import Affine, Conv, Mixed, Operator, Pad, Pool, Select, SlicedConv

__all__ = [
    "ALLOWANCE",
    "CPU",
    "MARGIN",
    "MEASURED",
    "TARGETS",
    "Clock",
    "Cost",
    "Target",
    "cost_of",
    "out_area",
    "target_named",
]

VECTOR = 16  # floats of 32 bits in the 512 bits of a register, and in a block of both runtimes
ALLOWANCE = 6.0
MARGIN = 0.1  # the error of the prediction: half of all alternatives are closer
EXACTLY = 1.0 + 1e-9
MEASURED = "measured"
UNPACKED = 8.0  # times as much of a depthwise conv


@dataclass(frozen=True)
class Cost:
    """MACs, elements read and written (weights, too), parameters and launches of operators.

    depthwise_macs and transposed_macs are parts of the MACs; idle_macs come on top: what the
    lanes without a channel could have computed. mixed: the numbers of kernels that are mixed for
    each sample; unpacked_macs: what is computed with them. surplus: what a measured price is above
    the computed one, or below.
    """

    macs: float = 0.0
    elements: float = 0.0
    parameters: int = 0
    launches: int = 0
    depthwise_macs: float = 0.0
    transposed_macs: float = 0.0
    idle_macs: float = 0.0
    surplus: float = 0.0
    mixed: float = 0.0
    unpacked_macs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.elements + other.elements,
            self.parameters + other.parameters,
            self.launches + other.launches,
            self.depthwise_macs + other.depthwise_macs,
            self.transposed_macs + other.transposed_macs,
            self.idle_macs + other.idle_macs,
            self.surplus + other.surplus,
            self.mixed + other.mixed,
            self.unpacked_macs + other.unpacked_macs,
        )


class Clock(Protocol):
    """Times operators. rate: MACs of a dense convolution in a second, on this machine."""

    @property
    def rate(self) -> float: ...

    def seconds(
        self, producer: Producer, area: float, channels: Sequence[int | None]
    ) -> float | None:
        """What the operator takes on an input of `area` positions; None if it cannot be timed."""
        ...


@dataclass(frozen=True)
class Target:
    """What is saved for: the prices, in MACs of a dense convolution.

    element: of a number moved. launch: of an operation started. depthwise, transposed: of such a
    MAC. idle: of what a lane without a channel could have computed. kernel: of a number of a kernel
    that is mixed for each sample; unpacked: more of a MAC with such a kernel. allowance: how many
    times the MACs of its branches a merged sum may have; chain: the same of operators in series.
    clock: what times the operators.
    """

    element: float
    launch: float
    depthwise: float
    transposed: float
    idle: float
    kernel: float = 200.0
    unpacked: float = 0.0
    allowance: float = ALLOWANCE
    chain: float = 1.0
    clock: Clock | None = None

    def cost(self, producer: Producer, area: float, channels: Sequence[int | None]) -> Cost:
        """`cost_of`, with what a measurement adds where there is one."""
        cost = cost_of(producer, area, channels)
        if self.clock is None or not cost.launches or isinstance(producer, Mixed | Gated):
            return cost
        seconds = self.clock.seconds(producer, area, channels)
        if seconds is None:
            return cost
        return replace(cost, surplus=seconds * self.clock.rate - self.price(cost))

    def on(self, node: Node, operator: Operator) -> Cost:
        """What the operator costs on a value."""
        return self.cost(operator, node.area, ()) + _bias_cost(operator, node)

    def own(self, graph: Graph, value: Value) -> Cost:
        """What the node that makes a value costs."""
        node, operands = graph.nodes[value], graph.operands(value)
        if node.inner:
            return Cost()
        area = graph.nodes[operands[0]].area if operands else 0.0
        channels = [graph.nodes[operand].channels for operand in operands]
        cost = self.cost(node.producer, area, channels)
        if operands:
            cost += _bias_cost(node.producer, graph.nodes[operands[0]])
        if node.within:  # no pass over memory and no launch of its own
            return Cost(cost.macs, 0.0, cost.parameters)
        return cost

    def price(self, cost: Cost) -> float:
        """The cost as one number, in multiply-accumulates of a dense convolution."""
        return (
            cost.macs
            + (self.depthwise - 1) * cost.depthwise_macs
            + (self.transposed - 1) * cost.transposed_macs
            + self.idle * cost.idle_macs
            + self.element * cost.elements
            + self.launch * cost.launches
            + self.kernel * cost.mixed
            + self.unpacked * cost.unpacked_macs
            + cost.surplus
        )

    def allows(
        self, parallel: bool, before: tuple[float, float], after: tuple[float, float]
    ) -> bool:
        """Whether MACs may rise from what they were; before and after: (price, MACs).

        parallel: branches are merged, and no operators in series.
        """
        limit = self.allowance if parallel else self.chain
        (old, old_macs), (new, macs) = before, after
        if macs <= old_macs * EXACTLY or limit == math.inf:
            return True
        return macs <= limit * old_macs and new <= (1 - MARGIN) * old


# What `python -m tests.benchmarks.cost_model --fit` finds for every other alternative, rounded.
CPU = Target(element=9.5, launch=1.2e6, depthwise=1.8, transposed=1.5, idle=0.84)
ONNX_RUNTIME = Target(
    element=0.9, launch=1e5, depthwise=2.4, transposed=3.3, idle=1.0, kernel=34.0, unpacked=0.4
)
# Not measured: many more MACs in the time of a memory access, and launches that take longer.
GPU = Target(element=64.0, launch=2e6, depthwise=16.0, transposed=1.0, idle=1.0)


def _targets(cpu: Target) -> dict[str, Target]:
    return {
        "cpu": cpu,
        "gpu": GPU,
        "min-macs": replace(cpu, allowance=1.0),
        "min-ops": replace(cpu, launch=1e12, allowance=math.inf, chain=math.inf),
    }


TARGETS = {"torch": _targets(CPU), "onnx": _targets(ONNX_RUNTIME)}


def target_named(name: str, runtime: str = "torch") -> Target:
    """One of `TARGETS`, or those of "cpu" for "measured"; RepfuseError for any other name.

    runtime: what the result runs in, PyTorch ("torch") or ONNX Runtime ("onnx").
    """
    targets = TARGETS[runtime]
    if isinstance(name, str) and name == MEASURED:
        return targets["cpu"]
    if not isinstance(name, str) or name not in targets:
        choices = ", ".join((*targets, MEASURED))
        raise RepfuseError(f"there is no target {name!r}: choose one of {choices}")
    return targets[name]


def out_area(producer: Producer, area: float) -> float:
    """Positions of the output, given those of the input."""
    if isinstance(producer, SlicedConv):
        producer = producer.conv
    if isinstance(producer, Mixed):
        return out_area(producer.together, area)
    if isinstance(producer, Conv) and producer.transposed:
        return area * math.prod(producer.stride)
    if isinstance(producer, Conv | Pool):
        return area / math.prod(producer.stride)
    return area


def cost_of(producer: Producer, area: float, channels: Sequence[int | None]) -> Cost:
    """The cost on an input of `area` positions; `channels` are those of the operands."""
    if isinstance(producer, Conv | SlicedConv):
        return _conv_cost(producer if isinstance(producer, Conv) else producer.conv, area)
    if isinstance(producer, Mixed):
        return _mixed_cost(producer, area)
    if isinstance(producer, Affine):
        size = producer.in_channels * area
        return Cost(size, 2 * size, 2 * producer.in_channels, 1)
    if isinstance(producer, Pad):
        return Cost(0.0, 2 * producer.channels * area, 0, 1)
    if isinstance(producer, Pool):
        taps, positions = math.prod(producer.kernel_size), out_area(producer, area)
        macs = producer.channels * taps * positions
        return Cost(macs, producer.channels * (area + positions), 0, 1, depthwise_macs=macs)
    if isinstance(producer, Select) and not producer.is_range:
        return Cost(0.0, 2 * producer.out_channels * area, 0, 1)
    if isinstance(producer, Gated):
        size = (channels[0] or 0) * area
        return Cost(size, 2 * size, 0, 1)
    size = sum(count or 0 for count in channels) * area
    if isinstance(producer, Sum):  # two operands at a time: both are read, their sum is written
        adds = max(len(channels) - 1, 0)
        return Cost(0.0, 3 * adds * size / max(len(channels), 1), 0, adds)
    if isinstance(producer, Concat):
        return Cost(0.0, 2 * size, 0, 1)
    assert isinstance(producer, Select | Opaque)
    return Cost()


def _mixed_cost(mixed: Mixed, area: float) -> Cost:
    """The conv, and the kernel of one sample: no other sample finds it in a cache."""
    conv = cost_of(mixed.together, area, ())
    own = mixed.together.weight.size if isinstance(mixed.together, Conv) else mixed.in_channels
    stacked = own * len(mixed.terms)
    unpacked = conv.macs + UNPACKED * conv.depthwise_macs
    return conv + Cost(
        macs=stacked,
        parameters=stacked - own,
        launches=1 + any(_has_bias(operator) for _, operator in mixed.terms),
        mixed=own,
        unpacked_macs=unpacked,
    )


def _bias_cost(producer: Producer, node: Node) -> Cost:
    """The pass over the output of a Linear that adds its bias, where that is one of its own."""
    if not (node.apart and isinstance(producer, Conv) and not producer.rank and producer.has_bias):
        return Cost()
    return Cost(0.0, 2 * producer.out_channels * node.area, 0, 1)


def _has_bias(operator: Operator) -> bool:
    if isinstance(operator, Affine):
        return not operator.shift.is_zero
    return isinstance(operator, Conv) and operator.has_bias


def _conv_cost(conv: Conv, area: float) -> Cost:
    positions = out_area(conv, area)
    macs = conv.weight.size * (area if conv.transposed else positions)
    moved = conv.in_channels * area + conv.out_channels * positions + conv.weight.size
    parameters = conv.weight.size + (conv.out_channels if conv.has_bias else 0)
    launches = 1
    if conv.pads and conv.border != "zeros":  # frameworks pad first, in a pass of its own
        moved, launches = moved + 2 * conv.in_channels * area, 2
    depthwise = conv.groups > 1 and conv.weight.shape[1] == 1
    width = conv.out_channels if depthwise else conv.out_channels // conv.groups
    lanes = math.ceil(width / VECTOR) * VECTOR
    return Cost(
        macs,
        moved,
        parameters,
        launches,
        depthwise_macs=macs if depthwise else 0.0,
        transposed_macs=macs if conv.transposed else 0.0,
        idle_macs=macs * (lanes - width) / width,
    )
