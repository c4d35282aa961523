"""Writes the body of one class, statement by statement: what every kind of move needs.

Each statement is run as it is added, on inputs of all the sizes that will be checked: what does not
run, or gives nothing, is taken back. So a program may hold anything that PyTorch takes.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.campaign.program import Body, Statement, run, unread
from tests.swarm import preferring

__all__ = ["CHANNELS", "Writer"]

CHANNELS = (3, 4, 6, 8)
ELEMENTS = 20_000
FAULTS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


class Writer:
    """rank: spatial axes of an image, whose channels are its axis 1; 0 where the input is rows or
    tokens, whose channels are the last axis. axis: where the channels of each value are."""

    def __init__(
        self, dice: random.Random, rank: int, inputs: list[Tensor], classes: list[Body]
    ) -> None:
        self.dice, self.rank, self.classes = dice, rank, classes
        self.values: dict[str, list[Tensor]] = {"x": inputs}
        self.axis: dict[str, int] = {"x": 1 if rank else -1}
        self.layers: dict[str, str] = {}
        self.made: nn.Module = nn.Module()
        self.statements: list[Statement] = []
        self.names = run("\n\n".join(one.source() for one in classes))
        self.arguments = "x"

    def moves(self) -> dict[Callable[[], object], float]:
        """What may be written, and how often."""
        return {}

    def write(self, count: int) -> None:
        moves = preferring(self.dice, self.moves())
        for _ in range(4 * count):
            if len(self.statements) >= count:
                break
            self.dice.choices(list(moves), list(moves.values()))[0]()
        if len(self.values) == 1:
            self.put("torch.relu(x)", "x")

    def body(self, name: str, result: str) -> Body:
        layers, statements = tuple(self.layers.items()), tuple(self.statements)
        return Body(name, self.arguments, layers, statements, result)

    def prune(self, result: str) -> None:
        """Leave out what nobody reads."""
        while gone := unread(self.statements, result):
            self.statements = [one for one in self.statements if one.target not in gone]

    def returned(self) -> str:
        """The last value, nearly all of what nobody reads, now and then another one."""
        *others, last = [name for name in self.values if name != "x"]
        loose = unread(self.statements)
        chosen = [n for n in others if self.maybe(0.97 if n in loose else 0.06)] + [last]
        if len(chosen) == 1:
            return last if self.maybe(0.9) else f"({last},)"
        form = self.dice.choice(("tuple", "list", "dict"))
        if form == "dict":
            return "{" + ", ".join(f'"{name}": {name}' for name in chosen) + "}"
        return ", ".join(chosen) if form == "tuple" else f"[{', '.join(chosen)}]"

    # Choosing.

    def maybe(self, chance: float = 0.5) -> bool:
        return self.dice.random() < chance

    def pick(self) -> str:
        """Any value that has channels, rather a late one."""
        known = list(self.axis)
        return self.dice.choice(known[-4:] if self.maybe(0.7) else known)

    def image(self) -> str:
        """One with channels before places; the picked one may be tokens."""
        images = [name for name in self.axis if self.is_image(name)]
        if not images:
            return self.pick()
        return self.dice.choice(images[-4:] if self.maybe(0.7) else images)

    def tokens(self) -> list[str]:
        return [name for name, axis in self.axis.items() if axis == -1]

    def is_image(self, name: str) -> bool:
        return self.axis[name] == 1 and self.values[name][0].dim() == self.rank + 2

    def channels(self, name: str) -> int:
        return self.values[name][0].shape[self.axis[name]]

    def shapes(self, name: str) -> list[torch.Size]:
        return [value.shape for value in self.values[name]]

    def alike(self, name: str) -> list[str]:
        return [n for n in self.axis if self.shapes(n) == self.shapes(name)]

    # Writing.

    def layer(self, source: str, kind: str = "layer") -> str:
        """A new layer; it counts only once a statement that uses it was kept."""
        name = f"{kind}{len(self.layers)}"
        self.layers[name] = source
        made = eval(source, {**self.names, "self": self.made})
        if not source.startswith("self.register"):
            setattr(self.made, name, made)
        self.made.double().eval()
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        made = f"torch.randn({', '.join(map(str, shape))})" if shape else "torch.tensor(0.7)"
        if self.maybe(0.3):
            return self.layer(f'self.register_buffer("number{len(self.layers)}", {made})', "number")
        return self.layer(f"nn.Parameter({made})", "number")

    def put(self, source: str, *reads: str, axis: int = 0) -> str | None:
        """`name = source`, if it runs; source may go on with lines that change the new value, which
        they call `made`. axis: of its channels, those of the first that is read otherwise."""
        name = f"v{len(self.values)}"
        source = source.replace("made", name)
        code = compile(f"{name} = {source}", "<statement>", "exec")
        found: list[Tensor] = []
        try:
            for index in range(len(self.values["x"])):
                names = {**self.names, "self": self.made, **self._at(index)}
                exec(code, names)
                value = names[name]
                if not isinstance(value, Tensor) or not 0 < value.numel() <= ELEMENTS:
                    return None
                if not value.is_floating_point() or not value.abs().max() < 1e6:
                    return None
                found.append(value)
        except FAULTS:
            return None
        self.values[name] = [value.clone() for value in found]
        axis = axis or (self.axis[reads[0]] if reads else 1)
        if found[0].dim() > 1 and found[0].shape[axis] <= 24:
            self.axis[name] = axis
        self.statements.append(Statement(name, source))
        return name

    def does(self, source: str) -> None:
        """A statement that changes a value, if it runs."""
        before = copy.deepcopy(self.values)
        try:
            for index in range(len(self.values["x"])):
                exec(source, {**self.names, "self": self.made, **self._at(index)})
        except FAULTS:
            self.values = before
            return
        self.statements.append(Statement("", source))

    def _at(self, index: int) -> dict[str, Tensor]:
        return {name: found[index] for name, found in self.values.items()}

    def each(self, choices: tuple[int, ...]) -> str:
        """A number for each spatial axis."""
        return f"({', '.join(str(self.dice.choice(choices)) for _ in range(self.rank))},)"
