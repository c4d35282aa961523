"""The target "measured": operators are timed on this machine, and each time is kept.

A frontend runs one operator with random numbers in place of weights, which are not read. It is
given the work alone: what the operator is and how large its input. The graph knows how many
positions a value has, and not how they lie: they are taken as a square, or a cube, for every sample
of the batch. What cannot be timed so, or would take too long, costs what the formula says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from repfuse.areas import Shapes, batch_of
from repfuse.cost import Target
from repfuse.graph import Concat, Producer, Sum
from repfuse.operators import Affine, Conv, Pool, SlicedConv
from repfuse.timings import Timings, cache_file, is_time

__all__ = ["Stopwatch", "Work", "measured", "quickest"]

LONGEST = 2e10  # MACs: about half a second
LARGEST = 2.0**28  # numbers that an operator reads, writes and holds
PATIENCE = 1.0  # seconds that a run may be expected to take; after one that took more comes none
SLOT, RUNS = 0.01, 5  # an operator runs for so many seconds, and so many times, or more
ANY = 1e9  # times as many MACs: any number, but the price has to fall by the margin then


@dataclass(frozen=True)
class Work:
    """One operator and the size of its input: (batch, channels, *sizes), or of each operand.

    kind: "conv", "linear", "affine", "sum", "concat" or "pool". The rest is of a conv or pooling;
    channels are those of the input, for a concat those of every operand.
    """

    kind: str
    batch: int
    channels: tuple[int, ...]
    sizes: tuple[int, ...]
    out_channels: int = 0
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    transposed: bool = False

    @property
    def key(self) -> str:
        """All of it as a text, the same in every process."""
        return repr(self).removeprefix("Work")

    @property
    def weights(self) -> float:
        """Numbers of the kernel; a pooling has one, too."""
        groups = self.channels[0] if self.kind == "pool" else self.groups
        return self.out_channels * self.channels[0] * math.prod(self.kernel_size) / groups

    @property
    def macs(self) -> float:
        """Multiply-accumulates, about: what a border takes off is not counted."""
        strides = 1 if self.transposed else math.prod(self.stride)
        return self.weights * self.batch * math.prod(self.sizes) / strides

    @property
    def numbers(self) -> float:
        """Numbers of the inputs, of the output and of the weights, about."""
        read = sum(self.channels)
        written = (self.out_channels or read) * (math.prod(self.stride) if self.transposed else 1)
        return self.weights + (read + written) * self.batch * math.prod(self.sizes)


# What a conv is that tells how fast the machine is: the unit of all prices.
UNIT = Work("conv", 1, (64,), (56, 56), 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), bias=True)
UNIT_MACS = 64 * 64 * 9 * 56 * 56


class Stopwatch:
    """A `Clock` that asks a frontend for the seconds of a work, once for each.

    measure: runs the work and gives its seconds; None, or an error, if it cannot. tell: called
    with the number of works that were timed.
    """

    def __init__(
        self,
        measure: Callable[[Work], float | None],
        timings: Timings,
        batch: int = 1,
        tell: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.timings = timings
        self._measure = measure
        self._batch = batch
        self._tell = tell
        self._failed: set[str] = set()
        self._count = 0

    @property
    def rate(self) -> float:
        unit = self._of(UNIT)
        return 5e10 if unit is None else UNIT_MACS / unit

    def seconds(
        self, producer: Producer, area: float, channels: Sequence[int | None]
    ) -> float | None:
        work = work_of(producer, area, channels, self._batch)
        return None if work is None else self._of(work)

    def _of(self, work: Work) -> float | None:
        known = self.timings.get(work.key)
        if known is not None or work.key in self._failed or work.numbers > LARGEST:
            return known
        if work != UNIT and work.macs > PATIENCE * self.rate:
            return None
        try:
            seconds = self._measure(work)
        except Exception:  # the frontend has no such operator: the formula has a price for it
            seconds = None
        if seconds is None or not is_time(seconds):
            self._failed.add(work.key)
            return None
        self.timings.put(work.key, seconds)
        self._count += 1
        self._tell(self._count)
        return seconds


def measured(
    base: Target,
    measure: Callable[[Work], float | None],
    machine: str,
    shapes: Shapes = (),
    tell: Callable[[int], None] = lambda count: None,
) -> tuple[Target, Timings]:
    """The target whose operators are timed; the times are to be saved when all is chosen.

    base: the prices of what cannot be timed. machine: what the times hold for.
    """
    timings = Timings(machine, cache_file())
    clock = Stopwatch(measure, timings, batch_of(shapes), tell)
    return replace(base, allowance=ANY, chain=ANY, clock=clock), timings


def work_of(
    producer: Producer, area: float, channels: Sequence[int | None], batch: int
) -> Work | None:
    """What there is to time; None for what has no form of its own, or is too large."""
    if isinstance(producer, SlicedConv):
        producer = producer.conv
    if isinstance(producer, Conv):
        return _conv(producer, area, batch)
    if isinstance(producer, Affine):
        sizes = _sizes(area, batch, producer.rank)
        return Work("affine", batch, (producer.in_channels,), sizes)
    if isinstance(producer, Sum | Concat):
        counts = tuple(count or 0 for count in channels)
        kind = "sum" if isinstance(producer, Sum) else "concat"
        if not all(counts) or area < 1:
            return None
        return Work(kind, batch, counts, (max(1, round(area / batch)),))
    if isinstance(producer, Pool) and producer.divisor is None and not producer.ceil_mode:
        return Work(
            "pool",
            batch,
            (producer.channels,),
            _sizes(area, batch, producer.rank),
            producer.channels,
            producer.kernel_size,
            producer.stride,
            producer.padding,
        )
    return None


def _conv(conv: Conv, area: float, batch: int) -> Work | None:
    sizes = _sizes(area, batch, conv.rank)
    if conv.weight.size * math.prod(sizes) * batch > LONGEST:
        return None
    if conv.border != "zeros" or any(low < 0 or high < 0 for low, high in conv.padding):
        return None
    spans = zip(sizes, conv.padding, conv.span, strict=True)
    if not conv.transposed and any(size + sum(pad) <= span for size, pad, span in spans):
        return None
    return Work(
        "conv" if conv.rank else "linear",
        batch,
        (conv.in_channels,),
        sizes or (max(1, round(area / batch)),),
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.has_bias,
        conv.transposed,
    )


def _sizes(area: float, batch: int, rank: int) -> tuple[int, ...]:
    """Equal sizes with about so many positions in a sample."""
    return (max(1, round((area / batch) ** (1 / rank))),) * rank if rank else ()


def quickest(run: Callable[[], object]) -> float:
    """The seconds of the quickest of several runs: whatever else runs makes others slower."""
    begin = time.perf_counter()
    run()
    first = time.perf_counter() - begin
    if first > PATIENCE:
        return first
    best, spent, runs = math.inf, 0.0, 0
    while spent < SLOT or runs < RUNS:
        begin = time.perf_counter()
        run()
        taken = time.perf_counter() - begin
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return best
