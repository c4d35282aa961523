"""What real files hold beside layers: numbers of any kind, choices, bounds, borders, rounding, and
operators that nobody knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.frontends.onnx.evaluate import NARROW
from tests.frontends.onnx.random_base import Tensor
from tests.frontends.onnx.random_forms import RandomForms

__all__ = ["RandomOddities"]


class RandomOddities(RandomForms):
    """Moves that are not linear, or that do nothing, or that break what is beside them."""

    def extreme(self) -> None:
        """A constant with zeros, ones, tiny and large numbers, or of a higher rank."""
        x, net = self.pick(), self.net
        shape = self.dice.choice(self._shapes(x))
        kinds = (0.0, -0.0, 1.0, -1.0, 1e-40, 1e3, 0.25)
        count = int(np.prod(shape))
        same = self.maybe(0.3)
        values = (
            self.dice.choices(kinds, k=1) * count if same else self.dice.choices(kinds, k=count)
        )
        given = net.const(np.array(values).reshape(shape))
        y = net.node(self.dice.choice(("Add", "Mul", "Mul", "Sub")), *self.shuffled(x.name, given))
        self.keep(y, x)

    def wider(self) -> None:
        """A constant of a higher rank than what it is added to, and the axis is taken away."""
        x, net = self.pick(), self.net
        ones = (1,) * self.rank
        op = self.dice.choice(("Add", "Mul"))
        y = net.node(
            op, *self.shuffled(x.name, net.scale(*[1] * (self.ndim - self.rank), x.channels, *ones))
        )
        place = 0
        if net.opset < 13:
            y = net.node("Squeeze", y, axes=[place])
        else:
            y = net.node("Squeeze", y, *[net.ints(place)])
        self.keep(y, x)

    def chosen(self) -> None:
        """One of two values at each place, by a mask that is computed or constant."""
        x, net = self.pick(), self.net
        if net.opset < 9:
            return
        other = self.dice.choice(self.alike(x))
        if self.maybe():
            zero = net.node("Mul", x.name, net.const(0.0)) if self.maybe(0.2) else net.const(0.0)
            mask = net.node("Greater", x.name, zero)
            mask = net.node("Not", mask) if self.maybe(0.3) else mask
        else:
            shape = self.dice.choice(self._shapes(x))
            mask = net.const(net.noise.random(shape) > 0.5, elem=TensorProto.BOOL)
        instead = other.name if self.maybe(0.7) else net.const(0.0)
        self.keep(net.node("Where", mask, *self.shuffled(x.name, instead)), x, other)

    def clipped(self) -> None:
        """Bounds as attributes, as inputs, or left out."""
        x, net = self.pick(), self.net
        if net.opset < 11:
            ends: dict[str, Any] = {"min": -1.0, "max": 6.0}
            y = net.node("Clip", x.name, **(ends if self.maybe() else {"min": 0.0}))
        else:
            y = net.node("Clip", x.name, self.dice.choice(("", net.const(0.0))), net.const(6.0))
        self.keep(y, x)

    def masked(self) -> None:
        """A Dropout whose mask is there, and read or not; a Split of which a part is unread."""
        x, net = self.pick(), self.net
        if self.maybe():
            given = ["", net.const(False, elem=TensorProto.BOOL)] * (
                net.opset >= 12 and self.maybe()
            )
            y, mask = net.several("Dropout", x.name, *given, count=2)
            self.keep(y, x)
            if net.opset >= 10 and self.maybe(0.2):
                self.outputs.append(mask)
            return
        if x.channels % 2:
            return
        attrs = {"num_outputs": 2} if net.opset >= 18 else {}
        names = net.several("Split", x.name, count=2, axis=self.axis, **attrs)
        self.put(self.dice.choice(names), x.channels // 2, x.sizes, x)

    def spread(self) -> None:
        """Twice as large, or its places moved into channels and back."""
        x, net = self.pick(), self.net
        if self.rank != 2:
            return
        double = tuple(tuple(2 * n for n in size) for size in x.sizes)
        if x.channels % 4 == 0 and self.maybe():
            y = net.node("DepthToSpace", x.name, blocksize=2)
            if self.maybe():
                made = self.put(y, x.channels // 4, double, x)
                y = net.node("SpaceToDepth", made.name, blocksize=2)
                self.put(y, x.channels, x.sizes, made)
            elif max(map(max, double)) <= 16:
                self.put(y, x.channels // 4, double, x)
            return
        if max(map(max, double)) > 16:
            return
        scales = [1.0, 1.0, 2.0, 2.0]
        if net.opset < 9:
            y = net.node("Upsample", x.name, scales=scales, mode="nearest")
        elif net.opset < 11:
            op = "Upsample" if net.opset < 10 else "Resize"
            y = net.node(op, x.name, net.const(scales, net.name("scales") + NARROW), mode="nearest")
        else:
            given = net.const(scales, net.name("scales") + NARROW)
            mode = self.dice.choice(("nearest", "linear"))
            y = net.node(
                "Resize", x.name, "" if net.opset >= 13 else net.const([]), given, mode=mode
            )
        self.put(y, x.channels, double, x)

    def nothing(self) -> None:
        """An empty piece in a concat, one term of a sum, a whole piece, a step of -1 twice."""
        x, net, axis = self.pick(), self.net, self.axis
        form = self.dice.choice(("empty", "one", "whole", "twice", "lone"))
        if form == "empty":
            name = self.empty(x)
            y = net.node("Concat", *self.shuffled(x.name, name), axis=axis)
        elif form == "one":
            y = net.node(self.dice.choice(("Sum", "Max", "Mean", "Min")), x.name)
        elif form == "lone":
            y = net.node("Concat", x.name, axis=axis)
        elif form == "whole" or net.opset < 10:
            y = self.piece(x.name, 0, 2**31 - 1, axis)
        else:
            turn = [net.ints(n) for n in (-1, -(2**31), axis, -1)]
            y = net.node("Slice", net.node("Slice", x.name, *turn), *turn)
        self.keep(y, x)

    def empty(self, x: Tensor) -> str:
        return self.piece(x.name, 0, 0, self.axis)

    def piece(self, x: str, start: int, end: int, axis: int) -> str:
        net = self.net
        if net.opset < 10:
            return net.node("Slice", x, starts=[start], ends=[end], axes=[axis])
        return net.node("Slice", x, *(net.ints(n) for n in (start, end, axis)))

    def framed(self) -> None:
        """A Pad with its own number in the border, or which names its axes."""
        x, net = self.pick(), self.net
        low, high = ([self.dice.randint(0, 1) for _ in range(self.rank)] for _ in range(2))
        sizes = tuple(
            tuple(n + a + b for n, a, b in zip(size, low, high, strict=True)) for size in x.sizes
        )
        fill = self.dice.choice((0.0, 1.0, -0.5))
        amounts = [0, 0, *low, 0, 0, *high]
        if net.opset < 11:
            y = net.node("Pad", x.name, pads=amounts, value=fill)
        elif net.opset < 18:
            y = net.node("Pad", x.name, net.ints(*amounts), net.const(fill))
        else:
            places = [self.dice.choice((2 + i, 2 + i - self.ndim)) for i in range(self.rank)]
            ends = net.ints(*low, *high)
            y = net.node(
                "Pad", x.name, ends, self.dice.choice(("", net.const(fill))), net.ints(*places)
            )
        self.put(y, x.channels, sizes, x)

    def samples(self) -> None:
        """The batch goes into the channels, where its size is known, and comes back."""
        x, net = self.pick(), self.net
        if not self.static or not self.rank:
            return
        batch, c = self.sizes[0]["N"], x.channels
        y = net.node("Reshape", x.name, net.ints(1, batch * c, *x.sizes[0]))
        if self.maybe():
            y = net.conv(
                y,
                batch * c,
                batch * c,
                3,
                self.rank,
                self.maybe(),
                group=self.dice.choice((1, batch, batch * c)),
            )
        else:
            y = net.bn(y, batch * c)
        self.put(net.node("Reshape", y, net.ints(batch, c, *x.sizes[0])), c, x.sizes, x)

    def quantized(self) -> None:
        """Rounded to whole steps and back."""
        x, net = self.pick(), self.net
        if net.opset < 10:
            return
        step = net.const(0.05, net.name("step") + NARROW)
        zero = net.const(3, elem=TensorProto.INT8)
        y = net.node("QuantizeLinear", x.name, step, zero)
        self.keep(net.node("DequantizeLinear", y, step, zero), x)

    def foreign(self) -> None:
        """An operator that nobody knows."""
        x, net = self.pick(), self.net
        net.imports["odd.domain"] = 1
        self.keep(net.node("Twist", x.name, domain="odd.domain"), x)

    def measured(self) -> None:
        """A factor that is computed from the shape."""
        x, net = self.pick(), self.net
        count = net.node(
            "Gather", net.node("Shape", x.name), net.ints(self.dice.randrange(self.ndim))
        )
        number = net.node("Cast", count, to=TensorProto.FLOAT)
        self.keep(net.node(self.dice.choice(("Mul", "Div", "Add")), x.name, number), x)
