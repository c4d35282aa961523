"""Where the axes of a tensor are after permutations and flattenings that leave the channels whole.

    permute, flatten, view: positions stand elsewhere, and are the same

Work on each position by itself (a scale and shift, a pointwise conv, a Linear, a sum) commutes
with that, so that it can be written for the tensor as it was before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from repfuse.graph import Producer, Sum
from repfuse.operators import Affine, Conv

__all__ = ["Layout", "at_rank", "told_apart"]

Axis: TypeAlias = tuple[int, int, int]  # an axis of the original: (which, part, number of parts)


@dataclass(frozen=True)
class Layout:
    """For each axis of a tensor, the axes of the original that lie in it, outermost first.

    channel: which axis of the original holds the channels; it stays an axis of its own. lengths:
    sizes of axes of the original that are known, numbers or names. splits: what tells the lengths
    of the parts of an axis; parts of two layouts are as long as each other where this is equal.
    """

    groups: tuple[tuple[Axis, ...], ...]
    channel: int
    lengths: tuple[tuple[int, int | str], ...] = ()
    splits: tuple[tuple[int, Hashable], ...] = ()

    @classmethod
    def of(cls, count: int, rank: int, sizes: Sequence[int | str | None] = ()) -> Layout:
        """An original of `count` axes, of which the last `rank` are spatial ones."""
        known = tuple((axis, size) for axis, size in enumerate(sizes) if size is not None)
        return cls(tuple(((axis, 0, 1),) for axis in range(count)), count - rank - 1, known)

    @property
    def place(self) -> int:
        """The axis of the channels."""
        return next(i for i, group in enumerate(self.groups) if group[0][0] == self.channel)

    @property
    def rank(self) -> int:
        """How many axes stand behind the channels."""
        return len(self.groups) - 1 - self.place

    @property
    def samples_first(self) -> bool:
        """Whether the first axis of the original stands before the channels, or its size is known:
        no conv runs on an empty axis behind them."""
        known = dict(self.lengths).get(0)
        behind = {which for group in self.groups[self.place :] for which, _, _ in group}
        return 0 not in behind or isinstance(known, int)

    @property
    def is_original(self) -> bool:
        return self.groups == tuple(((axis, 0, 1),) for axis in range(len(self.groups)))

    def permuted(self, order: Sequence[int]) -> Layout | None:
        count = len(self.groups)
        order = [axis % count for axis in order] if all(-count <= a < count for a in order) else []
        if sorted(order) != list(range(count)):
            return None
        return replace(self, groups=tuple(self.groups[axis] for axis in order))

    def flattened(self, first: int, last: int) -> Layout | None:
        """The axes from first to last as one; not where the channels are among several."""
        count = len(self.groups)
        if not (-count <= first < count and -count <= last < count):
            return None
        first, last = first % count, last % count
        if first > last or (first <= self.place <= last and first < last):
            return None
        joined = _whole([axis for group in self.groups[first : last + 1] for axis in group])
        groups = (*self.groups[:first], joined, *self.groups[last + 1 :])
        torn = {which for group in groups for which, _, parts in group if parts > 1}
        splits = tuple((which, by) for which, by in self.splits if which in torn)
        return replace(self, groups=groups, splits=splits)

    def split(self, place: int, parts: int, by: Hashable = None) -> Layout | None:
        """An axis that holds one axis of the original as several; by: what tells their lengths."""
        group = self.groups[place]
        if place == self.place or len(group) != 1 or group[0][2] != 1:
            return None
        new = tuple(((group[0][0], part, parts),) for part in range(parts))
        groups = (*self.groups[:place], *new, *self.groups[place + 1 :])
        return replace(self, groups=groups, splits=(*self.splits, (group[0][0], by)))

    def parts_of(self, place: int) -> tuple[Axis, ...]:
        return self.groups[place]

    def apart(self, place: int) -> Layout:
        """The axes of the original that lie in one axis, each as an axis."""
        new = tuple((axis,) for axis in self.groups[place])
        return replace(self, groups=(*self.groups[:place], *new, *self.groups[place + 1 :]))

    def order(self) -> list[int] | None:
        """The axes of the original as they follow each other; None where one is torn apart."""
        found: list[int] = []
        flat = [axis for group in self.groups for axis in group]
        for index, (which, part, _) in enumerate(flat):
            if part and flat[index - 1][:2] != (which, part - 1):
                return None
            if not part:
                found.append(which)
        return found

    def sizes(self, original: Sequence[int]) -> list[int]:
        """The sizes of the axes; where one was split, the first part has all of it."""
        return [
            prod(original[which] for which, part, _ in group if part == 0) for group in self.groups
        ]


def _whole(axes: list[Axis]) -> tuple[Axis, ...]:
    """Axes in a row; the parts of one that all follow each other are this axis again."""
    found: list[Axis] = []
    for axis in axes:
        found.append(axis)
        which, part, parts = axis
        tail = found[-parts:]
        if parts > 1 and part == parts - 1 and tail == [(which, i, parts) for i in range(parts)]:
            found[-parts:] = [(which, 0, 1)]
    return tuple(found)


def at_rank(producer: Producer, rank: int) -> Producer | None:
    """The same work on each position by itself, for data of another rank; None for any other."""
    if isinstance(producer, Sum):
        return producer
    if isinstance(producer, Affine):
        return replace(producer, rank=rank)
    if not isinstance(producer, Conv) or not producer.pointwise or producer.transposed:
        return None
    if producer.groups != 1 and not rank:
        return None
    ones = (1,) * rank
    weight = producer.weight.reshape(*producer.weight.shape[:2], *ones)
    sides = ((0, 0),) * rank
    return replace(
        producer, weight=weight, stride=ones, padding=sides, dilation=ones, border="zeros"
    )


def told_apart(convs: Sequence[Conv], size: tuple[int, ...]) -> tuple[int, ...]:
    """The size with no two axes as long as each other, the batch and the channels among them; of
    the same residues. The smallest sizes stay."""
    taken = {2, *(conv.in_channels for conv in convs), *(conv.out_channels for conv in convs)}
    found: list[int] = []
    for axis, length in enumerate(size if max(size, default=0) > 1 else ()):
        while length in taken:
            length += max((conv.stride[axis] for conv in convs), default=1)
        taken.add(length)
        found.append(length)
    return tuple(found) or size
