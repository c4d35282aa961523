"""The operators: affine maps from one tensor to one tensor, with lazy float64 weights.

A tensor here is (..., channels, *spatial): the channel axis is counted from the end, at
-(rank + 1), so that batched and unbatched inputs, and a Linear (rank 0) on tokens, all fit.

`Conv` covers 1-D, 2-D and 3-D convolutions, transposed ones and the Linear (a conv with an
empty kernel). `Affine` is a per-channel scale and shift. `Pool`, `Pad`, `Select` and
`SlicedConv` are convolutions that are cheaper in their own form; passes turn them into a `Conv`
where that leads somewhere. `Mixed` is a conv whose kernel is another one for each sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from repfuse.arrays import Array

__all__ = [
    "Affine",
    "Conv",
    "Gate",
    "Mixed",
    "Operator",
    "Pad",
    "Padding",
    "Pool",
    "Select",
    "SlicedConv",
]

Padding: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution, y = weight * x + bias.

    weight: (out_channels, in_channels / groups, *kernel_size), also where it is transposed.
    padding: (low, high) per spatial axis; a negative amount crops. A transposed convolution
    crops its output by it, and its output padding is a smaller high side.
    border: what stands beyond the input: zeros, reflect, replicate or circular.
    """

    weight: Array
    bias: Array
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    groups: int = 1
    border: str = "zeros"
    transposed: bool = False

    @property
    def rank(self) -> int:
        return len(self.stride)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def span(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, per axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def slack(self) -> tuple[int, ...]:
        """pad_lo + pad_hi - span: with the stride it decides the output size, for every input."""
        return tuple(
            low + high - span for (low, high), span in zip(self.padding, self.span, strict=True)
        )

    @property
    def pads(self) -> bool:
        """Whether a tap can leave the input."""
        return any(low > 0 or high > 0 for low, high in self.padding)

    @property
    def pointwise(self) -> bool:
        """One tap on every position, nothing padded and nothing skipped."""
        return (
            math.prod(self.kernel_size) == 1
            and all(stride == 1 for stride in self.stride)
            and all(side == (0, 0) for side in self.padding)
        )

    @property
    def has_bias(self) -> bool:
        return not self.bias.is_zero


@dataclass(frozen=True, eq=False)
class Affine:
    """A per-channel scale and shift, y = scale * x + shift; both of shape (channels,)."""

    scale: Array
    shift: Array
    rank: int

    @property
    def in_channels(self) -> int:
        return self.scale.shape[0]

    @property
    def out_channels(self) -> int:
        return self.scale.shape[0]

    @property
    def is_identity(self) -> bool:
        return self.scale.is_one and self.shift.is_zero

    @classmethod
    def identity(cls, channels: int, rank: int) -> Affine:
        return cls(Array.full((channels,), 1.0), Array.full((channels,), 0.0), rank)


@dataclass(frozen=True, eq=False)
class Pool:
    """An average pooling; divisor None divides by the number of taps."""

    channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    counts_border: bool = True
    ceil_mode: bool = False
    divisor: float | None = None

    @property
    def rank(self) -> int:
        return len(self.stride)

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True, eq=False)
class Pad:
    """A border around a tensor, (low, high) per spatial axis; a negative amount crops.

    value: the number per channel that a border of "zeros" holds, where these are not zeros.
    """

    channels: int
    padding: Padding
    border: str = "zeros"
    value: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.padding)

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True, eq=False)
class Select:
    """The channels `indices` of a tensor with `in_channels` channels."""

    indices: tuple[int, ...]
    in_channels: int
    rank: int

    @property
    def out_channels(self) -> int:
        return len(self.indices)

    @property
    def is_range(self) -> bool:
        """Whether the channels are neighbours: then the selection is a view of the memory."""
        first = self.indices[0]
        return self.indices == tuple(range(first, first + len(self.indices)))


@dataclass(frozen=True, eq=False)
class SlicedConv:
    """A conv on the channels begin, begin + 1, ... of a tensor with `in_channels` channels."""

    conv: Conv
    begin: int
    in_channels: int

    @property
    def rank(self) -> int:
        return self.conv.rank

    @property
    def out_channels(self) -> int:
        return self.conv.out_channels

    @property
    def end(self) -> int:
        """One past the last channel that is read."""
        return self.begin + self.conv.in_channels


@dataclass(frozen=True)
class Gate:
    """A factor that is computed from data: one number per sample, or per sample and channel.

    value: the value of the graph that holds it. channels: 1, or as many as it is multiplied with.
    base, index, pieces: where the factor is piece `index` of `pieces` of one value (batch, pieces,
    channels, 1, ...).
    """

    value: int
    channels: int = 1
    base: int | None = None
    index: int = 0
    pieces: int = 1


@dataclass(frozen=True, eq=False)
class Mixed:
    """A sum of operators of one source, each times a factor of its own that depends on the sample.

    terms: (gate, operator); a gate that is None is 1, which one term at most has. together: their
    sum without the factors, whose geometry a conv with a mixed kernel has.
    """

    terms: tuple[tuple[Gate | None, Operator], ...]
    together: Operator

    @property
    def rank(self) -> int:
        return self.together.rank

    @property
    def in_channels(self) -> int:
        return self.together.in_channels

    @property
    def out_channels(self) -> int:
        return self.together.out_channels

    @property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(gate for gate, _ in self.terms if gate is not None)

    @property
    def per_channel(self) -> bool:
        """Whether some factor differs from channel to channel."""
        return any(gate.channels > 1 for gate in self.gates)


Operator: TypeAlias = Conv | Affine | Pool | Pad | Select | SlicedConv | Mixed
