"""Forms of layers that exporters write and people write by hand: windows whose padding is computed,
products with the weight on either side, and norms, written out or on statistics of the batch."""

from __future__ import annotations

from typing import Any

from tests.frontends.onnx.random_base import CHANNELS
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
