"""Seeded random ONNX graphs: linear operators of every form, a few others between them.

Every value knows its channels and its size for each of the tested inputs, so that sums and concats
join what fits, or what broadcasts. By itself: `python -m tests.frontends.onnx.random_graphs 0 5000`
looks for graphs that fuse wrongly, and prints their seeds.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import ModelProto

from tests.frontends.onnx.build import Net
from tests.frontends.onnx.cases import fused, same_interface
from tests.frontends.onnx.evaluate import SIZES, Sizes, assert_same, in_double

__all__ = ["Outcome", "RandomGraph", "check"]

CHANNELS = (4, 6, 8)
OPSETS = (9, 10, 11, 13, 17, 18, 21, onnx.defs.onnx_opset_version())


@dataclass(frozen=True)
class Tensor:
    name: str
    channels: int
    sizes: tuple[tuple[int, ...], ...]  # of the spatial axes, for each tested input


class RandomGraph:
    """One graph. rank 0 stands for tokens or rows, whose channels are the last axis."""

    def __init__(self, seed: int, nodes: int = 12) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.net = Net(self.dice.choice(OPSETS), seed=seed)
        self.rank = self.dice.choice((0, 1, 2, 2, 2, 2, 3))
        self.ndim = self.rank + 2 if self.rank else self.dice.choice((2, 3, 4))
        self.static = self.dice.random() < 0.4
        self.sizes: tuple[Sizes, ...] = SIZES[1:2] if self.static else SIZES
        self.outputs: list[str] = []
        names = ("D", "H", "W")[3 - self.rank :] if self.rank else ("H", "W")[: self.ndim - 2]
        channels = self.dice.choice(CHANNELS)
        dims: list[int | str] = list(names)
        dims.insert(0 if self.rank else len(dims), channels)
        dims = ["N", *dims]
        if self.static:
            dims = [self.sizes[0].get(str(dim), dim) for dim in dims]
        x = self.net.input("x", dims)
        shapes = tuple(tuple(given[name] for name in names) for given in self.sizes)
        self.pool = [Tensor(x, channels, shapes)]
        self.read: set[str] = set()
        moves = self._moves()
        for _ in range(nodes):
            move = self.dice.choices(list(moves), list(moves.values()))[0]
            move()
        self._finish()

    def model(self) -> ModelProto:
        model = self.net.model(*self.outputs)
        for output in model.graph.output:  # inference does not look through every Reshape
            kind = output.type.tensor_type
            if not kind.HasField("shape"):
                kind.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * self.ndim)
        return model

    def _moves(self) -> dict[Callable[[], object], float]:
        both: dict[Callable[[], object], float] = {
            self.block: 5,
            self.join: 3,
            self.constant: 3,
            self.norm: 2,
            self.plain: 2,
            self.concat: 1.5,
            self.part: 1.5,
            self.broadcast: 0.7,
            self.shape: 0.7,
            self.gate: 0.4,
        }
        if not self.rank:
            return {**both, self.matrix: 4}
        return {
            **both,
            self.conv: 3,
            self.same: 3,
            self.transposed: 1,
            self.pad: 1,
            self.average: 1,
            self.mean_of_all: 0.4,
        }

    # Choosing.

    def pick(self) -> Tensor:
        """Any value, rather a late one."""
        return self.dice.choice(self.pool[-4:] if self.dice.random() < 0.7 else self.pool)

    def alike(self, tensor: Tensor) -> list[Tensor]:
        return [t for t in self.pool if (t.channels, t.sizes) == (tensor.channels, tensor.sizes)]

    def put(
        self,
        name: str,
        channels: int,
        sizes: tuple[tuple[int, ...], ...],
        *sources: Tensor,
    ) -> Tensor:
        self.read.update(source.name for source in sources)
        self.pool.append(Tensor(name, channels, sizes))
        return self.pool[-1]

    def keep(self, name: str, like: Tensor, *sources: Tensor) -> Tensor:
        return self.put(name, like.channels, like.sizes, like, *sources)

    def maybe(self, chance: float = 0.5) -> bool:
        return self.dice.random() < chance

    # Layers.

    def norm(self, x: Tensor | None = None) -> Tensor:
        x = x or self.pick()
        if not self.rank and self.ndim > 2:
            return self.constant(x)
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

    def shuffled(self, *names: str) -> list[str]:
        return self.dice.sample(names, len(names))

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

    # Arithmetic.

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
        if op == "Sum" and self.maybe(0.2):
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
            op = self.dice.choice(("Add", "Sub", "Mean"))
            self.keep(self.net.node(op, *self.shuffled(x.name, other.name)), x, other)

    def gate(self) -> None:
        x = self.pick()
        other = self.dice.choice(self.alike(x))
        self.keep(self.net.node("Mul", x.name, other.name), x, other)

    def mean_of_all(self) -> None:
        x = self.pick()
        point = ((1,) * self.rank,) * len(x.sizes)
        self.put(self.net.node("GlobalAveragePool", x.name), x.channels, point, x)

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

    # Pieces.

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
        kind = self.dice.choice(("Shape", "Size", "Expand", "Reshape"))
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

    def _finish(self) -> None:
        """Outputs: the last value, most of what nobody reads, and now and then another one."""
        first, *others, last = [*self.pool, self.pool[-1]]
        for tensor in dict.fromkeys(others):
            chance = 0.1 if tensor.name in self.read else 0.8
            if tensor not in (first, last) and self.maybe(chance):
                self.outputs.append(tensor.name)
        if last is first:
            last = self.plain(first)
        self.outputs.append(last.name)


@dataclass(frozen=True)
class Outcome:
    """rewritten: whether fusing changed anything; stable: whether a second time does nothing."""

    rewritten: bool
    stable: bool


def check(seed: int) -> Outcome:
    """Fuse one graph, and prove the result."""
    graph = RandomGraph(seed)
    single = graph.model()
    onnx.checker.check_model(single, full_check=True)
    model = in_double(single)
    result, _ = fused(model)
    onnx.checker.check_model(result, full_check=True)
    same_interface(model, result)
    assert_same(model, result, 1e-9, graph.sizes)
    again, _ = fused(result)
    if again != result:
        assert_same(model, again, 1e-9, graph.sizes)
    return Outcome(result != model, again == result)


def main() -> None:
    first, last = map(int, sys.argv[1:])
    rewritten, unstable, failed = 0, [], 0
    for seed in range(first, last):
        try:
            outcome = check(seed)
        except Exception as error:
            failed += 1
            print(seed, type(error).__name__, str(error)[:300].replace("\n", " "), flush=True)
            continue
        rewritten += outcome.rewritten
        unstable += [] if outcome.stable else [seed]
    print(f"{last - first} graphs, {rewritten} rewritten, {failed} failed, unstable: {unstable}")


if __name__ == "__main__":
    main()
