"""Forms of layers that exporters write and people write by hand: windows whose padding is computed,
products with the weight on either side, norms written out, and the forms of other opsets."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.frontends.onnx.evaluate import NARROW
from tests.frontends.onnx.random_base import CHANNELS, Tensor
from tests.frontends.onnx.random_pieces import RandomPieces

__all__ = ["RandomForms"]


class RandomForms(RandomPieces):
    """Moves that say the same in another way, or nearly the same."""

    def window(self) -> None:
        """A conv whose padding follows from the size, or which says its kernel's size."""
        x, outputs = self.pick(), self.dice.choice(CHANNELS)
        kind = self.dice.choice(("VALID", "SAME_UPPER", "SAME_LOWER"))
        kernel = [self.dice.choice((1, 2, 3, 4)) for _ in range(self.rank)]
        stride = [self.dice.choice((1, 2, 2, 3)) for _ in kernel]
        dilation = [self.dice.choice((1, 1, 2)) for _ in kernel]
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sizes = tuple(
            tuple(
                -(-(n - span if kind == "VALID" else n) // s)
                for n, s, span in zip(size, stride, spans, strict=True)
            )
            for size in x.sizes
        )
        if min(min(size) for size in sizes) < 1:
            return
        more: dict[str, Any] = {"kernel_shape": kernel} if self.maybe() else {}
        for _ in range(2 if self.maybe(0.3) else 1):
            y = self.net.conv(
                x.name, x.channels, outputs, kernel, self.rank, self.maybe(),
                group=self._groups(x.channels, outputs), strides=stride, dilations=dilation,
                auto_pad=kind, **more,
            )  # fmt: skip
            self.put(y, outputs, sizes, x)

    def back(self) -> None:
        """A transposed conv that says its output's size, or pads as is needed."""
        x, outputs = self.pick(), self.dice.choice(CHANNELS)
        kernel = [self.dice.choice((2, 3, 4)) for _ in range(self.rank)]
        stride = [self.dice.choice((1, 2)) for _ in kernel]
        kind = self.dice.choice(("VALID", "SAME_UPPER", "SAME_LOWER", "NOTSET"))
        attrs: dict[str, Any] = {"auto_pad": kind}
        if kind == "VALID":
            sizes = tuple(
                tuple(s * (n - 1) + k for n, k, s in zip(size, kernel, stride, strict=True))
                for size in x.sizes
            )
        else:
            sizes = tuple(
                tuple(s * n for n, s in zip(size, stride, strict=True)) for size in x.sizes
            )
        if kind == "NOTSET":
            if not self.static:
                return
            attrs = {"output_shape": list(sizes[0])}
        if max(max(size) for size in sizes) > 16:
            return
        y = self.net.conv_transpose(
            x.name, x.channels, outputs, kernel, self.rank, self.maybe(),
            group=self._groups(x.channels, outputs), strides=stride, **attrs,
        )  # fmt: skip
        self.put(y, outputs, sizes, x)

    def product(self) -> None:
        """A product that is no plain x @ w."""
        x, net, outputs = self.pick(), self.net, self.dice.choice(CHANNELS)
        c = x.channels
        forms = ["left", "stack", "thick"]
        forms += ["einsum"] * 2 * (net.opset >= 12)
        forms += ["trans", "trans"] * (self.ndim == 2)
        form = self.dice.choice(forms)
        if form == "left":  # w @ x, on the axes before the last
            axes = [*range(self.ndim - 2), self.ndim - 1, self.ndim - 2]
            turned = net.node("Transpose", x.name, perm=axes)
            y = net.node("MatMul", net.weight(outputs, c), turned)
            if self.maybe():
                y = net.node("Add", *self.shuffled(y, net.scale(outputs, 1)))
            y = net.node("Transpose", y, perm=axes)
        elif form == "trans":
            turned = net.node("Transpose", x.name, perm=[1, 0])
            rest = [net.scale(outputs)] * (net.opset < 11 or self.maybe())
            beta: dict[str, Any] = {"beta": 0.0} if rest and self.maybe(0.3) else {}
            y = net.node("Gemm", turned, net.weight(c, outputs), *rest, transA=1, **beta)
        elif form == "einsum":
            letters = "bst"[: self.ndim - 1]
            across = self.maybe()
            pair = net.weight(outputs, c) if across else net.weight(c, outputs)
            rule = f"{letters}c,{'oc' if across else 'co'}->{letters}o"
            y = net.node("Einsum", x.name, pair, equation=rule)
        elif form == "thick":  # the weight has axes in front
            ones = [1] * (self.ndim - 2)
            y = net.node("MatMul", x.name, net.weight(*ones, c, outputs))
        else:  # one weight for each sample, where their number is known
            if not self.static or self.ndim < 3:
                return
            ones = [1] * (self.ndim - 3)
            y = net.node("MatMul", x.name, net.weight(self.sizes[0]["N"], *ones, c, outputs))
        y = net.node("Mul", y, net.scale(outputs)) if self.maybe(0.3) else y
        self.put(y, outputs, x.sizes, x)

    def vector(self) -> None:
        """A product with a vector, which takes the axis away."""
        x, net = self.pick(), self.net
        if self.ndim < 3:
            return
        y = net.node("MatMul", x.name, net.weight(x.channels))
        if net.opset < 13:
            y = net.node("Unsqueeze", y, axes=[self.ndim - 1])
        else:
            y = net.node("Unsqueeze", y, net.ints(-1))
        self.put(y, 1, x.sizes, x)

    def written(self) -> None:
        """A norm, written out."""
        x, net, axis = self.pick(), self.net, self.axis
        over = [axis] if not self.rank or self.maybe() else list(range(2, self.ndim))
        if self.rank and self.maybe(0.3):
            over = list(range(1, self.ndim))
        y = net.node("Sub", x.name, self.mean(x.name, over)) if self.maybe(0.8) else x.name
        square = net.node("Mul", y, y) if self.maybe() else net.node("Pow", y, net.const(2.0))
        spread = net.node("Add", *self.shuffled(self.mean(square, over), net.const(1e-3)))
        y = net.node("Div", y, net.node("Sqrt", spread))
        shape = (x.channels, *(1,) * self.rank)
        y = net.node("Mul", *self.shuffled(y, net.scale(*shape)))
        if self.maybe(0.8):
            y = net.node("Add", *self.shuffled(y, net.weight(*shape)))
        self.keep(y, x)

    def mean(self, x: str, axes: list[int], op: str = "ReduceMean") -> str:
        """In the form of the opset; the axes are kept."""
        axes = [a - self.ndim for a in axes] if self.net.opset >= 11 and self.maybe(0.3) else axes
        if self.net.opset >= 18:
            return self.net.node(op, x, self.net.ints(*axes), keepdims=1)
        return self.net.node(op, x, axes=axes)

    def grouped_norm(self) -> None:
        """Over groups of channels: as one node, or by way of an instance norm."""
        x, net = self.pick(), self.net
        if x.channels % 2 or not self.rank or x.channels < 4:
            return
        if net.opset >= 21 and self.maybe(0.4):
            parameters = net.scale(x.channels), net.weight(x.channels)
            self.keep(net.node("GroupNormalization", x.name, *parameters, num_groups=2), x)
            return
        y = net.node("Reshape", x.name, net.ints(0, 2, -1))
        ones, zeros = net.const([1.0, 1.0]), net.const([0.0, 0.0])
        y = net.node("InstanceNormalization", y, ones, zeros)
        y = net.node("Reshape", y, net.node("Shape", x.name))
        shape = (x.channels, *[1] * self.rank)
        y = net.node("Mul", y, net.scale(*shape))
        self.keep(net.node("Add", y, net.weight(*shape)), x)

    def batch_norm(self) -> None:
        """On the statistics of the batch, or as older opsets write it."""
        x, net = self.pick(), self.net
        if not self.rank and self.ndim > 2:
            return
        attrs: dict[str, Any] = {"epsilon": self.dice.choice((0.0, 1e-3, 0.1))}
        given = net.statistics(x.channels)
        if net.opset >= 14 and self.maybe():
            y, *_ = net.several("BatchNormalization", x.name, *given, count=3, training_mode=1)
        elif net.opset < 9 and self.maybe():
            y = net.node("BatchNormalization", x.name, *given, spatial=1, **attrs)
        else:
            y = net.node("BatchNormalization", x.name, *given, momentum=0.0, **attrs)
        self.keep(y, x)

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
