"""Pieces, borders and moves of axes in random ONNX graphs."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from tests.frontends.onnx.random_base import CHANNELS
from tests.frontends.onnx.random_layers import RandomLayers

__all__ = ["RandomPieces"]


class RandomPieces(RandomLayers):
    """Moves that leave the numbers as they are, or take some of them."""

    def pad(self) -> None:
        x = self.pick()
        modes = ["constant", "constant", "reflect", "edge"]
        mode = self.dice.choice(modes + ["wrap"] * (self.net.opset >= 19))
        least = -1 if mode == "constant" and self.net.opset >= 11 else 0
        low, high = ([self.dice.randint(least, 1) for _ in range(self.rank)] for _ in range(2))
        sizes = tuple(
            tuple(n + a + b for n, a, b in zip(size, low, high, strict=True)) for size in x.sizes
        )
        if min(min(size) for size in (*sizes, *x.sizes)) < 2:
            return
        amounts = [0, 0, *low, 0, 0, *high]
        if self.net.opset < 11:
            y = self.net.node("Pad", x.name, pads=amounts, mode=mode)
        else:
            y = self.net.node("Pad", x.name, self.net.ints(*amounts), mode=mode)
        self.put(y, x.channels, sizes, x)

    def mean_of_all(self) -> None:
        x = self.pick()
        point = ((1,) * self.rank,) * len(x.sizes)
        self.put(self.net.node("GlobalAveragePool", x.name), x.channels, point, x)

    def concat(self) -> None:
        x = self.pick()
        parts = [t for t in self.pool if t.sizes == x.sizes]
        parts = [self.dice.choice(parts) for _ in range(self.dice.choice((1, 2, 2, 3)))]
        total = sum(part.channels for part in parts)
        if total <= 16:
            axis = 1 if self.rank else self.ndim - 1
            if self.maybe(0.3) and self.net.opset >= 11:
                axis -= self.ndim
            y = self.net.node("Concat", *(part.name for part in parts), axis=axis)
            self.put(y, total, x.sizes, *parts)

    def part(self) -> None:
        x, axis, net = self.pick(), 1 if self.rank else self.ndim - 1, self.net
        if x.channels < 2:
            return
        kind = self.dice.choice(("Split", "Slice", "Gather"))
        half = self.dice.randrange(1, x.channels)
        if kind == "Split":
            sizes = [half, x.channels - half]
            given = [net.ints(*sizes)] if net.opset >= 13 else []
            attrs = {} if net.opset >= 13 else {"split": sizes}
            names = net.several("Split", x.name, *given, count=2, axis=axis, **attrs)
            for name, size in zip(names, sizes, strict=True):
                self.put(name, size, x.sizes, x)
        elif kind == "Slice":
            if net.opset < 10:
                y = net.node("Slice", x.name, starts=[0], ends=[half], axes=[axis])
            else:
                y = net.node("Slice", x.name, net.ints(0), net.ints(half), net.ints(axis))
            self.put(y, half, x.sizes, x)
        else:
            chosen = [self.dice.randrange(-x.channels, x.channels) for _ in range(half)]
            if self.maybe():
                chosen = self.dice.sample(range(x.channels), x.channels)
            y = net.node("Gather", x.name, net.ints(*chosen), axis=axis)
            self.put(y, len(chosen), x.sizes, x)

    def shape(self) -> None:
        """Something that reads no numbers of a value."""
        x = self.pick()
        kind = self.dice.choice(
            ("Shape", "Size", "Expand", "Reshape") if self.net.opset >= 8 else ("Shape", "Reshape")
        )
        if kind in ("Shape", "Size"):
            self.outputs.append(self.net.node(kind, x.name))
            return
        other = self.dice.choice(self.alike(x))
        given = self.net.node("Shape", other.name)
        if kind == "Reshape":
            flat = self.net.node("Reshape", x.name, self.net.ints(-1))
            self.keep(self.net.node("Reshape", flat, given), x)
        else:
            self.keep(self.net.node("Expand", self.net.const(0.5), given), x)

    def partial(self) -> None:
        """Operators on disjoint pieces, put together again."""
        x, net = self.pick(), self.net
        if x.channels < 4:
            return
        half = x.channels // 2
        sizes = [half, x.channels - half]
        given = [net.ints(*sizes)] if net.opset >= 13 else []
        attrs = {} if net.opset >= 13 else {"split": sizes}
        names = net.several("Split", x.name, *given, count=2, axis=self.axis, **attrs)
        parts = []
        for name, size in zip(names, sizes, strict=True):
            part = self.put(name, size, x.sizes, x)
            if self.maybe(0.7):
                part = self.same(part, size) if self.rank else self.matrix(part, size)
            parts.append(part)
        self.read.update(names)
        if self.maybe(0.3):
            parts.reverse()
        y = net.node("Concat", *(part.name for part in parts), axis=self.axis)
        self.put(y, sum(part.channels for part in parts), x.sizes, *parts)

    def crop(self) -> None:
        """A part of the places."""
        x, net = self.pick(), self.net
        axis = self.dice.randrange(self.rank)
        start, less, step = self.dice.choice((0, 0, 1)), self.dice.choice((0, 1)), 1
        if net.opset >= 10 and self.maybe(0.3):
            step = 2
        sizes = tuple(
            tuple(-((n - start - less) // -step) if i == axis else n for i, n in enumerate(size))
            for size in x.sizes
        )
        if min(min(size) for size in sizes) < 1:
            return
        end = -less if less else 2**31
        if net.opset < 10:
            y = net.node("Slice", x.name, starts=[start], ends=[end], axes=[2 + axis])
        else:
            numbers = (start, end, 2 + axis, step)
            y = net.node("Slice", x.name, *(net.ints(number) for number in numbers))
        self.put(y, x.channels, sizes, x)

    def largest(self) -> None:
        x = self.pick()
        if min(min(size) for size in x.sizes) < 2:
            return
        kernel = [2] * self.rank
        sizes = tuple(tuple(n - 1 for n in size) for size in x.sizes)
        self.put(self.net.node("MaxPool", x.name, kernel_shape=kernel), x.channels, sizes, x)

    def border(self) -> None:
        """The border of the middle value holds a number for each channel; a conv reads it."""
        x, net = self.pick(), self.net
        y = net.bn(x.name, x.channels)
        fill = net.weight(x.channels, *[1] * self.rank)
        inner = net.node("Sub", y, fill)
        sides = [0, 0, *[1] * self.rank] * 2
        if net.opset < 11:
            inner = net.node("Pad", inner, pads=sides)
        else:
            inner = net.node("Pad", inner, net.ints(*sides))
        outputs = self.dice.choice(CHANNELS)
        y = net.node("Add", inner, fill)
        y = net.conv(y, x.channels, outputs, 3, self.rank, pads=[0] * 2 * self.rank)
        self.put(y, outputs, x.sizes, x)

    def gated(self) -> None:
        """Branches, each times a number that is computed from the input, for each sample."""
        x, net = self.pick(), self.net
        count, outputs = self.dice.choice((2, 3)), self.dice.choice((x.channels, *CHANNELS))
        pooled = net.node("GlobalAveragePool", x.name)
        gates = net.conv(pooled, x.channels, count, 1, self.rank)
        if self.maybe(0.7):
            gates = net.node("Sigmoid", gates)
        terms = []
        for index in range(count):
            y = self.same(x, outputs)
            gate = net.node("Gather", gates, net.ints(index), axis=1)
            terms.append(
                y.name if self.maybe(0.2) else net.node("Mul", *self.shuffled(gate, y.name))
            )
            self.read.add(y.name)
        self.put(net.add(*terms), outputs, x.sizes, x)

    # Axes.

    def shuffle(self) -> None:
        x, net = self.pick(), self.net
        if x.channels % 2:
            return
        places = list(range(3, 3 + self.rank))
        pairs = net.ints(0, 2, x.channels // 2, *(x.sizes[0] if self.static else [0] * self.rank))
        if not self.static:  # 0 is what the input has on the same axis, which is another one here
            shape = net.node("Shape", x.name)
            ends = self.cut(shape, 0, 1), self.cut(shape, 2, 2 + self.rank)
            pairs = net.node("Concat", ends[0], net.ints(2, x.channels // 2), ends[1], axis=0)
        y = net.node("Reshape", x.name, pairs)
        y = net.node("Transpose", y, perm=[0, 2, 1, *places])
        if self.static:
            back = net.ints(0, x.channels, *x.sizes[0])
        else:
            back = net.node("Shape", x.name)
        self.put(net.node("Reshape", y, back), x.channels, x.sizes, x)

    def cut(self, shape: str, start: int, end: int) -> str:
        """A part of a vector."""
        net = self.net
        if net.opset < 10:
            return net.node("Slice", shape, starts=[start], ends=[end], axes=[0])
        return net.node("Slice", shape, net.ints(start), net.ints(end), net.ints(0))

    def tokens(self) -> None:
        """Linears along the channels, with the channels last in between."""
        x, net, rank = self.pick(), self.net, self.rank
        flat = self.maybe(0.4)
        if flat:
            y = net.node("Reshape", x.name, net.ints(0, x.channels, -1))
            y = net.node("Transpose", y, perm=[0, 2, 1])
        else:
            y = net.node("Transpose", x.name, perm=[0, *range(2, 2 + rank), 1])
        outputs = self.dice.choice((x.channels, *CHANNELS))
        terms = []
        for _ in range(self.dice.choice((1, 2, 2))):
            z = net.node("MatMul", y, net.weight(x.channels, outputs))
            if self.maybe():
                z = net.node("Add", *self.shuffled(z, net.weight(outputs)))
            terms.append(self.adapt(z, y, x.channels, outputs) if self.maybe(0.3) else z)
        y = net.node("Add", *terms) if len(terms) > 1 else terms[0]
        if self.maybe(0.3):
            y = self.normed(y, outputs)
        if self.maybe(0.3):
            y = net.node("Mul", y, net.scale(outputs))
        if not flat:
            y = net.node("Transpose", y, perm=[0, rank + 1, *range(1, rank + 1)])
        else:
            y = net.node("Transpose", y, perm=[0, 2, 1])
            if self.static:
                y = net.node("Reshape", y, net.ints(0, outputs, *x.sizes[0]))
            else:
                shape = net.node("Shape", x.name)
                ends = self.cut(shape, 0, 1), self.cut(shape, 2, 2 + rank)
                shape = net.node("Concat", ends[0], net.ints(outputs), ends[1], axis=0)
                y = net.node("Reshape", y, shape)
        self.put(y, outputs, x.sizes, x)

    def adapt(self, z: str, y: str, inputs: int, outputs: int) -> str:
        """A low-rank product of y beside z."""
        net = self.net
        thin = net.node("MatMul", y, net.weight(inputs, 2))
        wide = net.node("MatMul", thin, net.weight(2, outputs))
        if self.maybe():
            wide = net.node("Mul", wide, net.const(0.5))
        return net.node("Add", *self.shuffled(z, wide))

    def adapted(self) -> None:
        x = self.pick()
        outputs = self.dice.choice(CHANNELS)
        z = self.net.node("MatMul", x.name, self.net.weight(x.channels, outputs))
        self.put(self.adapt(z, x.name, x.channels, outputs), outputs, x.sizes, x)

    def turn(self) -> None:
        """Axes are moved and moved back, with what is done per element in between."""
        x, net = self.pick(), self.net
        axes = self.dice.sample(range(self.ndim), self.ndim)
        y = net.node("Transpose", x.name, perm=axes)
        if self.maybe():
            y = net.node("Mul", y, net.scale())
        if self.maybe(0.3):
            y = net.node("Add", y, y)
        back = sorted(range(self.ndim), key=axes.__getitem__)
        y = net.node("Transpose", y, perm=back)
        if self.maybe(0.3):
            place = self.dice.randrange(self.ndim)
            if net.opset < 13:
                y = net.node("Unsqueeze", y, axes=[place])
                y = net.node("Squeeze", y, axes=[place])
            else:
                y = net.node("Unsqueeze", y, net.ints(place))
                y = net.node("Squeeze", y, net.ints(place))
        self.keep(y, x)

    def odd(self) -> None:
        """What is not linear, or not what it looks like."""
        x, net, axis = self.pick(), self.net, self.axis
        forms: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Softmax", [x.name], {"axis": axis}),
            ("Abs", [x.name], {}),
        ]
        forms += [("Cast", [x.name], {"to": TensorProto.FLOAT}), ("Tanh", [x.name], {})]
        forms += [("LeakyRelu", [x.name], {"alpha": 0.1}), ("Flatten", [x.name], {"axis": 1})]
        forms += [("Max", [x.name, x.name], {})]
        forms += [("ReduceMean", [x.name], {"axes": [axis]})] if net.opset < 18 else []
        forms += [("Clip", [x.name, net.const(-1.0), net.const(1.0)], {})] * (net.opset >= 13)
        forms += [("Concat", [x.name, x.name], {"axis": 0})]
        if self.rank == 2:
            norm = [x.name, net.scale(x.channels), net.weight(x.channels)]
            forms += [("InstanceNormalization", norm, {}), ("LRN", [x.name], {"size": 3})]
        op, names, attrs = self.dice.choice(forms)
        y = net.node(op, *names, **attrs)
        if op in ("Flatten", "Concat"):
            self.outputs.append(y)
        elif op == "ReduceMean":
            self.keep(net.node("Sub", x.name, y), x)
        else:
            self.keep(y, x)
