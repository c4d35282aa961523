"""What an operator costs: multiply-accumulates, elements moved, launches.

The unit is one multiply-accumulate of a dense convolution. A memory access of one element is
worth `ELEMENT` of them and a launch `LAUNCH`: a merge may raise the MACs by no more than what
the memory passes and launches that it removes are worth. Depthwise convolutions use the
arithmetic units badly and are counted `DEPTHWISE` times. Whatever it saves, a sum of branches is
never merged into more than `ALLOWANCE` times their MACs, and a chain never into more at all,
unless the fewest operators are asked for ("min-ops").

A kernel that is mixed for each sample costs `KERNEL` elements for each of its own: to write it,
to bring it into the layout that the convolution wants, and to read it without any reuse. This was
measured at batch 8; at batch 1 it is a quarter.

`TARGETS` are these weights for machines and aims; only those of the default, "cpu", were set
against measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repfuse.errors import RepfuseError
from repfuse.graph import Concat, Gated, Opaque, Producer, Sum
from repfuse.operators import Affine, Conv, Mixed, Pad, Pool, Select, SlicedConv

__all__ = ["CPU", "TARGETS", "Cost", "Target", "cost_of", "out_area", "target_named"]

ELEMENT = 16.0
LAUNCH = 50_000.0
DEPTHWISE = 4.0
ALLOWANCE = 3.0
KERNEL = 12.0


@dataclass(frozen=True)
class Cost:
    """MACs, elements read and written, parameters and launches of one or more operators."""

    macs: float = 0.0
    elements: float = 0.0
    parameters: int = 0
    launches: int = 0
    depthwise_macs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.elements + other.elements,
            self.parameters + other.parameters,
            self.launches + other.launches,
            self.depthwise_macs + other.depthwise_macs,
        )


@dataclass(frozen=True)
class Target:
    """What is saved for: the price of one element moved, of a launch, of a depthwise MAC.

    allowance: how many times the MACs of its branches a merged sum may have; chain: the same for
    operators in series; mixing: the same for a sum with a kernel that is mixed for each sample.
    """

    element: float = ELEMENT
    launch: float = LAUNCH
    depthwise: float = DEPTHWISE
    allowance: float = ALLOWANCE
    chain: float = 1.0 + 1e-9
    mixing: float = 1.0

    def price(self, cost: Cost) -> float:
        """The cost as one number, in multiply-accumulates of a dense convolution."""
        return (
            cost.macs
            + (self.depthwise - 1) * cost.depthwise_macs
            + self.element * cost.elements
            + self.launch * cost.launches
        )


CPU = Target()
TARGETS = {
    "cpu": CPU,
    "gpu": Target(element=64.0, launch=2_000_000.0, depthwise=16.0),
    "min-macs": Target(allowance=1.0 + 1e-9),
    "min-ops": Target(launch=1e12, allowance=1e9, chain=1e9, mixing=1e9),
}


def target_named(name: str) -> Target:
    """One of `TARGETS`; RepfuseError for any other name."""
    if name not in TARGETS:
        raise RepfuseError(f"there is no target {name!r}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


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
        taps = math.prod(producer.kernel_size)
        return Cost(producer.channels * taps * out_area(producer, area))
    if isinstance(producer, Select) and not producer.is_range:
        return Cost(0.0, 2 * producer.out_channels * area, 0, 1)
    if isinstance(producer, Gated):
        size = (channels[0] or 0) * area
        return Cost(size, 2 * size, 0, 1)
    size = sum(count or 0 for count in channels) * area
    if isinstance(producer, Sum):
        return Cost(0.0, size * (1 + 1 / max(len(channels), 1)), 0, len(channels) - 1)
    if isinstance(producer, Concat):
        return Cost(0.0, 2 * size, 0, 1)
    assert isinstance(producer, Select | Opaque)
    return Cost()


def _mixed_cost(mixed: Mixed, area: float) -> Cost:
    """The conv, and the kernel of one sample: no other sample finds it in a cache."""
    conv = cost_of(mixed.together, area, ())
    own = mixed.together.weight.size if isinstance(mixed.together, Conv) else mixed.in_channels
    stacked = own * len(mixed.terms)
    return conv + Cost(stacked, KERNEL * own, stacked - own, 1)


def _conv_cost(conv: Conv, area: float) -> Cost:
    positions = out_area(conv, area)
    macs = conv.weight.size * (area if conv.transposed else positions)
    moved = conv.in_channels * area + conv.out_channels * positions
    parameters = conv.weight.size + (conv.out_channels if conv.has_bias else 0)
    launches = 1
    if conv.pads and conv.border != "zeros":  # frameworks pad first, in a pass of its own
        moved, launches = moved + 2 * conv.in_channels * area, 2
    narrow = conv.groups > 1 and conv.weight.shape[1] == 1
    return Cost(macs, moved, parameters, launches, macs if narrow else 0.0)
