"""Seeded random modules: linear operators, activations between them, every value read by many."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Tangled"]

CHANNELS = (4, 6, 8)
WIDEST = 16


class Tangled(nn.Module):
    """A graph on images of 4 channels; all that nobody reads is an output, so that nothing is
    computed in vain."""

    def __init__(self, seed: int, steps: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[tuple[str, tuple[int, ...], Any]] = []
        self.channels = [4]
        self.dice = random.Random(seed)
        for _ in range(steps):
            self._step()
        read = {operand for _, operands, _ in self.steps for operand in operands}
        values = range(1, len(self.channels))
        self.outputs = [v for v in values if v not in read or self.dice.random() < 0.1]

    def _pick(self) -> int:
        values = range(len(self.channels))
        return self.dice.choice(values[-4:] if self.dice.random() < 0.7 else values)

    def _add(self, name: str, operands: tuple[int, ...], channels: int, given: Any = None) -> int:
        self.steps.append((name, operands, given))
        self.channels.append(channels)
        return len(self.channels) - 1

    def _layer(self, layer: nn.Module, operand: int, channels: int) -> int:
        self.layers.append(layer)
        return self._add("layer", (operand,), channels, len(self.layers) - 1)

    def _conv(self, source: int, outputs: int = 0) -> int:
        dice, inputs = self.dice, self.channels[source]
        outputs = outputs or dice.choice(CHANNELS)
        high, dilation = dice.choice((1, 1, 3, 3, 5)), dice.choice((1, 1, 2))
        wide = dice.choice((high, high, 1, 3))
        shares = [g for g in (1, 1, 2, 4, inputs) if inputs % g == outputs % g == 0]
        layer = nn.Conv2d(
            inputs,
            outputs,
            (high, wide),
            padding=(dilation * (high // 2), dilation * (wide // 2)),
            dilation=dilation,
            groups=dice.choice(shares),
            bias=dice.random() < 0.6,
        )
        return self._layer(layer, source, outputs)

    def _step(self) -> None:
        dice, source = self.dice, self._pick()
        channels = self.channels[source]
        kind = dice.choices(
            ("conv", "norm", "relu", "scale", "shift", "pool", "slice", "cat", "block", "sum"),
            (10, 5, 3, 6, 3, 2, 2, 2, 8, 9),
        )[0]
        if kind == "conv":
            self._conv(source)
        elif kind == "norm":
            self._layer(nn.BatchNorm2d(channels), source, channels)
        elif kind in ("scale", "shift"):
            self._add(kind, (source,), channels, dice.choice((0.5, -1.0, -2.0, 3.0)))
        elif kind == "slice":
            half = channels // 2
            self._add(kind, (source,), half, dice.choice((slice(half), slice(half, 2 * half))))
        elif kind == "block":
            self._block(source, dice.choice((channels, channels, *CHANNELS)))
        elif kind in ("cat", "sum"):
            others = [i for i, c in enumerate(self.channels) if kind == "cat" or c == channels]
            other = dice.choice(others)
            total = channels + self.channels[other] if kind == "cat" else channels
            if total <= WIDEST:
                self._add(kind, (source, other), total, dice.choice((1, 1, -1)))
        else:
            self._add(kind, (source,), channels)

    def _block(self, source: int, outputs: int) -> None:
        """Parallel branches that are added."""
        dice, total = self.dice, -1
        for _ in range(dice.choice((2, 2, 3))):
            skips = outputs == self.channels[source] and dice.random() < 0.2
            term = source if skips else self._conv(source, outputs)
            if dice.random() < 0.3:
                term = self._layer(nn.BatchNorm2d(outputs), term, outputs)
            if dice.random() < 0.1:
                term = self._add("relu", (term,), outputs)
            total = term if total < 0 else self._add("sum", (total, term), outputs, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for name, operands, given in self.steps:
            first, *others = (values[operand] for operand in operands)
            if name == "layer":
                values.append(self.layers[given](first))
            elif name == "relu":
                values.append(F.relu(first))
            elif name == "scale":
                values.append(first * given)
            elif name == "shift":
                values.append(first + given)
            elif name == "pool":
                values.append(F.avg_pool2d(first, 3, 1, 1))
            elif name == "slice":
                values.append(first[:, given])
            elif name == "cat":
                values.append(torch.cat([first, *others], 1))
            else:
                values.append(first + others[0] if given > 0 else first - others[0])
        return [values[output] for output in self.outputs]
