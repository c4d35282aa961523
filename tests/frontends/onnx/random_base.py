"""What a random ONNX graph is made of: its values, of which the channels and the sizes are known,
and how they are chosen."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from tests.frontends.onnx.build import Net
from tests.frontends.onnx.evaluate import SIZES, Sizes
from tests.frontends.onnx.random_dress import dress
from tests.frontends.onnx.random_weights import disguise, tie
from tests.swarm import preferring

__all__ = ["CHANNELS", "NEWEST", "RandomBase", "Tensor"]

CHANNELS = (4, 6, 8)
LENGTHS = (6, 8, 10, 12)
NEWEST = onnx.defs.onnx_opset_version()


@dataclass(frozen=True)
class Tensor:
    name: str
    channels: int
    sizes: tuple[tuple[int, ...], ...]  # of the spatial axes, for each tested input


class RandomBase:
    """One graph. rank 0 stands for tokens or rows, whose channels are the last axis.

    varied: whether inputs, weights and lengths are, too.
    """

    opsets: tuple[int, ...] = (*range(7, 24), NEWEST)
    ranks: tuple[int, ...] = (0, 0, 1, 2, 2, 2, 2, 3)
    varied = True

    def __init__(self, seed: int, nodes: int = 0) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.net = Net(self.dice.choice(self.opsets), seed=seed)
        self.rank = self.dice.choice(self.ranks)
        self.ndim = self.rank + 2 if self.rank else self.dice.choice((2, 3, 4))
        self.static = self.dice.random() < 0.4
        self.sizes: tuple[Sizes, ...] = SIZES[1:2] if self.static else SIZES
        self.outputs: list[str] = []
        self.channels = self.dice.choice(CHANNELS)
        if self.varied and self.static and self.rank and self.maybe(0.2):  # alike by accident
            self.sizes = (dict.fromkeys("NDHW", self.channels),)
        self.pool: list[Tensor] = []
        self.source("x")
        if self.varied and self.maybe(0.15):
            self.source("y")
        self.inputs = tuple(self.pool)
        self.read: set[str] = set()
        moves = preferring(self.dice, self.moves()) if self.varied else self.moves()
        for _ in range(nodes or (self.dice.choice(LENGTHS) if self.varied else max(LENGTHS))):
            move = self.dice.choices(list(moves), list(moves.values()))[0]
            move()
        self._finish()

    def source(self, name: str) -> None:
        """An input; all have the same shape."""
        names = ("D", "H", "W")[3 - self.rank :] if self.rank else ("H", "W")[: self.ndim - 2]
        dims: list[int | str] = list(names)
        dims.insert(0 if self.rank else len(dims), self.channels)
        dims = ["N", *dims]
        if self.static:
            dims = [self.sizes[0].get(str(dim), dim) for dim in dims]
        shapes = tuple(tuple(given[name] for name in names) for given in self.sizes)
        self.pool.append(Tensor(self.net.input(name, dims), self.channels, shapes))

    def moves(self) -> dict[Callable[[], object], float]:
        """What may be added, and how often."""
        return {}

    def model(self) -> ModelProto:
        model = self.net.model(*self.outputs)
        flat = {node.output[0] for node in model.graph.node if node.op_type == "Flatten"}
        for output in model.graph.output:  # inference does not look through every Reshape
            kind = output.type.tensor_type
            if not kind.HasField("shape"):
                ndim = 2 if output.name in flat else self.ndim
                kind.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * ndim)
        if not self.varied:
            return model
        model = tie(model, self.dice) if self.maybe(0.15) else model
        model = disguise(model, self.dice) if self.maybe(0.35) else model
        return dress(model, self.dice)

    # Choosing.

    @property
    def axis(self) -> int:
        """That of the channels."""
        return 1 if self.rank else self.ndim - 1

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

    def shuffled(self, *names: str) -> list[str]:
        return self.dice.sample(names, len(names))

    def _finish(self) -> None:
        """Outputs: the last value, most of what nobody reads, and now and then another one."""
        *others, last = self.pool
        for tensor in dict.fromkeys(others):
            chance = 0.1 if tensor.name in self.read else 0.8
            if tensor not in (*self.inputs, last) and self.maybe(chance):
                self.outputs.append(tensor.name)
        if last in self.inputs:
            last = self.keep(self.net.relu(last.name), last)
        self.outputs.append(last.name)
