"""Operators of random ONNX graphs: convolutions of any window, products, norms and arithmetic."""

from __future__ import annotations

from typing import Any

from tests.frontends.onnx.random_base import CHANNELS, RandomBase, Tensor

__all__ = ["RandomLayers"]


class RandomLayers(RandomBase):
    """Moves that compute."""

    def normed(self, y: str, channels: int) -> str:
        """Each token normalised."""
        net = self.net
        if net.opset >= 23 and self.maybe():
            return net.node("RMSNormalization", y, net.scale(channels), axis=-1)
        if net.opset >= 17:
            scale, shift = net.scale(channels), net.weight(channels)
            return net.node("LayerNormalization", y, scale, shift, axis=-1)
        return net.node("Mul", y, net.scale(channels))

    def norm(self, x: Tensor | None = None) -> Tensor:
        x = x or self.pick()
        if not self.rank and self.ndim > 2:
            return (
                self.constant(x) if self.maybe() else self.keep(self.normed(x.name, x.channels), x)
            )
        return self.keep(self.net.bn(x.name, x.channels), x)

    def matrix(self, x: Tensor | None = None, outputs: int = 0) -> Tensor:
        x = x or self.pick()
        outputs = outputs or self.dice.choice((2, *CHANNELS))
        net = self.net
        if self.ndim == 2 and self.maybe():
            turned = self.maybe()
            shape = (outputs, x.channels) if turned else (x.channels, outputs)
            bias = [net.scale(*self.dice.choice(((), (1,), (outputs,), (1, outputs))))]
            attrs: dict[str, Any] = {"alpha": 0.5, "beta": -2.0} if self.maybe(0.3) else {}
            rest = bias if net.opset >= 11 and self.maybe() else [net.scale(outputs)]
            y = net.node("Gemm", x.name, net.weight(*shape), *rest, transB=int(turned), **attrs)
        else:
            y = net.node("MatMul", x.name, net.weight(x.channels, outputs))
            if self.maybe():
                y = net.node("Add", *self.shuffled(y, net.weight(outputs)))
        return self.put(y, outputs, x.sizes, x)

    def _groups(self, inputs: int, outputs: int) -> int:
        choices = [g for g in (1, 1, 2, 4, inputs) if inputs % g == outputs % g == 0]
        return self.dice.choice(choices)

    def same(self, x: Tensor | None = None, outputs: int = 0) -> Tensor:
        """A conv that keeps the size."""
        x = x or self.pick()
        outputs = outputs or self.dice.choice(CHANNELS)
        kernel = [self.dice.choice((1, 1, 2, 3, 3, 4, 5)) for _ in range(self.rank)]
        if self.maybe(0.7):
            kernel = [self.dice.choice((1, 3, 3, 5))] * self.rank
        dilation = [self.dice.choice((1, 1, 1, 2)) for _ in kernel]
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        low = [self.dice.choice((n // 2, n // 2, n // 2, 0, n)) for n in reach]
        sides = [*low, *(n - less for n, less in zip(reach, low, strict=True))]
        padding: dict[str, object] = {"pads": sides}
        if self.maybe(0.1):
            padding = {"auto_pad": self.dice.choice(("SAME_UPPER", "SAME_LOWER"))}
        y = self.net.conv(
            x.name,
            x.channels,
            outputs,
            kernel,
            self.rank,
            self.maybe(),
            group=self._groups(x.channels, outputs),
            dilations=dilation,
            **padding,
        )
        return self.put(y, outputs, x.sizes, x)

    def conv(self) -> None:
        """A conv with any window."""
        x, outputs = self.pick(), self.dice.choice((1, 2, *CHANNELS))
        kernel = [self.dice.choice((1, 2, 3)) for _ in range(self.rank)]
        stride = [self.dice.choice((1, 1, 2, 3)) for _ in kernel]
        dilation = [self.dice.choice((1, 1, 2)) for _ in kernel]
        low, high = ([self.dice.choice((0, 0, 1, 2)) for _ in kernel] for _ in range(2))
        sizes = tuple(
            tuple(
                (n + a + b - d * (k - 1) - 1) // s + 1
                for n, a, b, d, k, s in zip(size, low, high, dilation, kernel, stride, strict=True)
            )
            for size in x.sizes
        )
        if min(min(size) for size in sizes) < 1:
            return
        times = 2 if self.maybe(0.3) else 1
        for _ in range(times):
            y = self.net.conv(
                x.name,
                x.channels,
                outputs,
                kernel,
                self.rank,
                self.maybe(),
                group=self._groups(x.channels, outputs),
                strides=stride,
                dilations=dilation,
                pads=[*low, *high],
            )
            self.put(y, outputs, sizes, x)

    def transposed(self) -> None:
        x, outputs = self.pick(), self.dice.choice(CHANNELS)
        kernel = [self.dice.choice((1, 2, 3)) for _ in range(self.rank)]
        stride = [self.dice.choice((1, 2)) for _ in kernel]
        low, high = ([self.dice.choice((0, 0, 1)) for _ in kernel] for _ in range(2))
        extra = [self.dice.randrange(s) for s in stride]
        sizes = tuple(
            tuple(
                s * (n - 1) + k + more - a - b
                for n, a, b, k, s, more in zip(size, low, high, kernel, stride, extra, strict=True)
            )
            for size in x.sizes
        )
        if min(min(size) for size in sizes) < 1 or max(max(size) for size in sizes) > 16:
            return
        for _ in range(2 if self.maybe(0.4) else 1):
            y = self.net.conv_transpose(
                x.name,
                x.channels,
                outputs,
                kernel,
                self.rank,
                self.maybe(),
                group=self._groups(x.channels, outputs),
                strides=stride,
                pads=[*low, *high],
                output_padding=extra,
            )
            self.put(y, outputs, sizes, x)

    def average(self) -> None:
        x = self.pick()
        kernel = [self.dice.choice((2, 3)) for _ in range(self.rank)]
        border = [self.dice.choice((0, 1)) for _ in range(2 * self.rank)]
        if self.maybe():
            kernel, border = [3] * self.rank, [1] * (2 * self.rank)
        sizes = tuple(
            tuple(
                n + a + b - k + 1
                for n, a, b, k in zip(
                    size, border[: self.rank], border[self.rank :], kernel, strict=True
                )
            )
            for size in x.sizes
        )
        if min(min(size) for size in sizes) < 1:
            return
        y = self.net.node(
            "AveragePool",
            x.name,
            kernel_shape=kernel,
            pads=border,
            count_include_pad=self.dice.choice((0, 1, 1)),
        )
        self.put(y, x.channels, sizes, x)

    def constant(self, x: Tensor | None = None) -> Tensor:
        x = x or self.pick()
        op, first = self.dice.choice(
            (("Add", 0), ("Add", 1), ("Sub", 0), ("Sub", 1), ("Mul", 0), ("Mul", 1), ("Div", 0))
        )
        pair = [x.name, self.net.scale(*self.dice.choice(self._shapes(x)))]
        return self.keep(self.net.node(op, *(pair[::-1] if first else pair)), x)

    def _shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        """What broadcasts against a value without widening it."""
        c, ones = x.channels, (1,) * self.rank
        shapes: list[tuple[int, ...]] = [(), (1,), (c, *ones), (c, *ones), (1,) * self.ndim]
        shapes.append((*(1,) * (self.ndim - self.rank - 1), c, *ones))
        if self.static:  # and what only looks like a number per channel
            size, batch = x.sizes[0], self.sizes[0]["N"]
            full = (batch, c, *size) if self.rank else (batch, *size, c)
            shapes += [full[-1:], full[1:], (batch, *(1,) * (self.ndim - 1)), full[:1] + full[1:]]
            shapes += [(n, *(1,) * i) for i, n in enumerate(full[::-1])]
        return shapes

    def plain(self, x: Tensor | None = None) -> Tensor:
        x = x or self.pick()
        op = self.dice.choice(("Relu", "Relu", "Sigmoid", "Identity", "Identity", "Neg", "Dropout"))
        return self.keep(self.net.node(op, x.name), x)

    def join(self) -> None:
        x = self.pick()
        terms = [self.dice.choice(self.alike(x)) for _ in range(self.dice.choice((2, 2, 3, 4)))]
        op = self.dice.choice(("Add", "Add", "Sub", "Sum", "Mean"))
        if op in ("Add", "Sub"):
            terms = terms[:2]
        names = [term.name for term in terms]
        if op == "Sum" and self.net.opset >= 8 and self.maybe(0.2):
            names.append(self.net.scale(x.channels, *[1] * self.rank))
        self.keep(self.net.node(op, *names), x, *terms)

    def broadcast(self) -> None:
        """The sum of two values that have not the same shape."""
        x = self.pick()
        point = ((1,) * len(x.sizes[0]),) * len(x.sizes)
        others = [
            t
            for t in self.pool
            if t.channels in (1, x.channels) and t.sizes in (x.sizes, point) and t != x
        ]
        if others:
            other = self.dice.choice(others)
            op = self.dice.choice(("Add", "Sub", "Mean") if self.net.opset >= 8 else ("Add", "Sub"))
            self.keep(self.net.node(op, *self.shuffled(x.name, other.name)), x, other)

    def gate(self) -> None:
        x = self.pick()
        other = self.dice.choice(self.alike(x))
        self.keep(self.net.node("Mul", x.name, other.name), x, other)

    def block(self) -> None:
        """Parallel branches of one value, joined at once."""
        x = self.pick()
        outputs = self.dice.choice((x.channels, x.channels, *CHANNELS))
        terms = []
        for _ in range(self.dice.choice((2, 2, 3))):
            if outputs == x.channels and self.maybe(0.2):
                y = x
            else:
                y = self.same(x, outputs) if self.rank else self.matrix(x, outputs)
            for step in (self.norm, self.constant, self.plain):
                y = step(y) if self.maybe(0.3 if step != self.plain else 0.1) else y
            terms.append(y)
        names = [term.name for term in terms]
        if self.maybe(0.2):
            name = self.net.node("Concat", *names, axis=1 if self.rank else self.ndim - 1)
            made = self.put(name, outputs * len(terms), x.sizes, *terms)
        else:
            made = self.keep(self.net.add(*names), terms[0], *terms)
        if self.maybe(0.3):
            self.plain(made)
