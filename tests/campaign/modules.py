"""Seeded random modules: linear operators in every spelling, and what stands between them.

Each statement is run as it is added, on inputs of all the sizes that will be checked: what does not
run, or gives nothing, is taken back. So a program may hold anything that PyTorch takes.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.campaign.program import Body, Program, Statement, run

__all__ = ["random_program"]

CHANNELS = (3, 4, 6, 8)
SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((11,), (8,), (15,)),
    2: ((9, 7), (6, 8), (5, 11)),
    3: ((5, 6, 7), (4, 5, 4), (7, 5, 6)),
}
BATCHES = (1, 3, 2)
ELEMENTS = 40_000
ACTIVATIONS = ("relu", "sigmoid", "tanh", "abs")


def random_program(dice: random.Random, statements: int = 12) -> Program:
    """A network of about that many statements."""
    rank = dice.choice((1, 2, 2, 2, 2, 2, 3))
    channels = dice.choice(CHANNELS)
    sizes = SIZES[rank]
    if dice.random() < 0.25:  # constants may then have the size of the image
        sizes = (dice.choice(sizes),) * len(sizes)
    shapes = tuple((batch, channels, *size) for batch, size in zip(BATCHES, sizes, strict=True))
    with torch.no_grad():
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        writer = _Writer(dice, rank, inputs, [])
        writer.write(statements)
        body = writer.body("Net", writer.returned())
    return Program((*writer.classes, body), shapes, dice.randrange(1 << 30))


class _Writer:
    """Writes the body of one class."""

    def __init__(
        self, dice: random.Random, rank: int, inputs: list[Tensor], classes: list[Body]
    ) -> None:
        self.dice, self.rank, self.classes = dice, rank, classes
        self.values: dict[str, list[Tensor]] = {"x": inputs}
        self.layers: dict[str, str] = {}
        self.made: nn.Module = nn.Module()
        self.statements: list[Statement] = []
        self.read: set[str] = set()
        self.names = run("")
        self.moves: dict[Callable[[], object], float] = {
            self.block: 2.5,
            self.branches: 4,
            self.same: 3,
            self.conv: 2,
            self.norm: 3,
            self.constant: 3,
            self.join: 3,
            self.plain: 2,
            self.concat: 1.2,
            self.part: 1.5,
            self.shuffle: 0.5,
            self.transposed: 0.8,
            self.pool: 1,
            self.pad: 0.6,
            self.computed: 0.8,
            self.shared: 0.8,
            self.inplace: 0.7,
            self.gate: 0.4,
            self.tokens: 0.7,
            self.odd: 0.7,
        }

    def write(self, count: int) -> None:
        for _ in range(4 * count):
            if len(self.statements) >= count:
                break
            self.dice.choices(list(self.moves), list(self.moves.values()))[0]()
        if len(self.values) == 1:
            self.plain("x")

    def body(self, name: str, result: str) -> Body:
        return Body(name, "x", tuple(self.layers.items()), tuple(self.statements), result)

    def returned(self) -> str:
        """The last value, most of what nobody reads, now and then another one."""
        *others, last = [name for name in self.values if name != "x"]
        chosen = [n for n in others if self.maybe(0.08 if n in self.read else 0.6)] + [last]
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
        """Any value that has channels and places, rather a late one."""
        images = [n for n, found in self.values.items() if found[0].dim() == self.rank + 2]
        return self.dice.choice(images[-4:] if self.maybe(0.7) else images)

    def channels(self, name: str) -> int:
        return self.values[name][0].shape[1]

    def alike(self, name: str) -> list[str]:
        shapes = [value.shape for value in self.values[name]]
        return [n for n, found in self.values.items() if [v.shape for v in found] == shapes]

    # Writing.

    def layer(self, source: str, kind: str = "layer") -> str:
        """A new layer; it counts only once a statement that uses it was kept."""
        name = f"{kind}{len(self.layers)}"
        self.layers[name] = source
        names = {**self.names, "self": self.made}
        made = eval(source, names)
        if not source.startswith("self.register"):
            setattr(self.made, name, made)
        self.made.double().eval()
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        made = f"torch.randn({', '.join(map(str, shape))})" if shape else "torch.tensor(0.7)"
        if self.maybe(0.3):
            return self.layer(f'self.register_buffer("number{len(self.layers)}", {made})', "number")
        return self.layer(f"nn.Parameter({made})", "number")

    def put(self, source: str, *reads: str, into: str = "") -> str | None:
        """`name = source`, if it runs."""
        name = into or f"v{len(self.values)}"
        try:
            found = [
                eval(source, {**self.names, "self": self.made, **self._at(i)}) for i in range(3)
            ]
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return None
        good = all(
            isinstance(value, Tensor)
            and 0 < value.numel() <= ELEMENTS
            and value.isfinite().all()
            and value.abs().max() < 1e6
            for value in found
        )
        if not good:
            return None
        self.values[name] = [value.clone() for value in found]
        self.read.update(reads)
        self.statements.append(Statement(name, source))
        return name

    def does(self, source: str, *reads: str) -> None:
        """A statement that changes a value, if it runs."""
        before = copy.deepcopy(self.values)
        try:
            for index in range(3):
                exec(source, {**self.names, "self": self.made, **self._at(index)})
        except (RuntimeError, ValueError, IndexError):
            self.values = before
            return
        self.read.update(reads)
        self.statements.append(Statement("", source))

    def _at(self, index: int) -> dict[str, Tensor]:
        return {name: found[index] for name, found in self.values.items()}

    def sides(self, choices: tuple[int, ...]) -> str:
        return f"({', '.join(str(self.dice.choice(choices)) for _ in range(self.rank))},)"

    # Convolutions.

    def _groups(self, inputs: int, outputs: int) -> int:
        fitting = [g for g in (1, 1, 1, 2, inputs) if inputs % g == outputs % g == 0]
        return self.dice.choice(fitting)

    def same(self, x: str | None = None, outputs: int = 0) -> str | None:
        """A conv that keeps the size, written in one of many ways."""
        x = x or self.pick()
        inputs = self.channels(x)
        outputs = outputs or self.dice.choice((inputs, *CHANNELS))
        groups, bias = self._groups(inputs, outputs), self.maybe()
        kernel = self.dice.choice((1, 1, 3, 3, 3, 5, 2, 4))
        dilation = self.dice.choice((1, 1, 1, 2)) if kernel > 1 else 1
        reach = dilation * (kernel - 1)
        settings = f"dilation={dilation}, groups={groups}"
        kind, sizes = f"{self.rank}d", f"{inputs}, {outputs}, {kernel}"
        spelling = self.dice.choice(("module", "module", "module", "functional", "padded", "same"))
        if spelling == "same":
            made = self.layer(f"nn.Conv{kind}({sizes}, padding='same', {settings}, bias={bias})")
            return self.put(f"{made}({x})", x)
        if spelling == "module" and reach % 2 == 0:
            mode = self.dice.choice(("zeros",) * 8 + ("reflect", "replicate", "circular"))
            made = self.layer(
                f"nn.Conv{kind}({sizes}, padding={reach // 2}, {settings}, bias={bias}, "
                f"padding_mode={mode!r})"
            )
            return self.put(f"{made}({x})", x)
        if spelling == "functional" and reach % 2 == 0:
            shape = (outputs, inputs // groups, *[kernel] * self.rank)
            weight = self.parameter(*shape)
            last = self.parameter(outputs) if bias else "None"
            return self.put(
                f"F.conv{kind}({x}, {weight}, {last}, padding={reach // 2}, {settings})", x
            )
        low = reach // 2
        mode = self.dice.choice(("constant",) * 4 + ("reflect", "replicate", "circular"))
        made = self.layer(f"nn.Conv{kind}({sizes}, {settings}, bias={bias})")
        amounts = ", ".join([f"{low}, {reach - low}"] * self.rank)
        return self.put(f"{made}(F.pad({x}, ({amounts}), mode={mode!r}))", x)

    def conv(self) -> None:
        """Any conv."""
        x = self.pick()
        inputs, outputs = self.channels(x), self.dice.choice(CHANNELS)
        made = self.layer(
            f"nn.Conv{self.rank}d({inputs}, {outputs}, {self.sides((1, 2, 3))}, "
            f"stride={self.sides((1, 1, 2))}, padding={self.sides((0, 1, 1))}, "
            f"dilation={self.sides((1, 1, 1, 2))}, groups={self._groups(inputs, outputs)}, "
            f"bias={self.maybe()})"
        )
        for _ in range(2 if self.maybe(0.2) else 1):
            self.put(f"{made}({x})", x)

    def transposed(self) -> None:
        x = self.pick()
        inputs, outputs = self.channels(x), self.dice.choice((*CHANNELS, self.channels(x)))
        stride = self.dice.choice((1, 2, 2))
        extra = self.dice.choice((0, stride - 1))
        settings = (
            f"stride={stride}, output_padding={extra}, groups={self._groups(inputs, outputs)}"
        )
        kernels = self.dice.choice(((2,), (4, 2), (3, 1), (3, 3)))
        terms: list[str] = []
        for kernel in kernels:
            alone = len(kernels) == 1
            padding = self.dice.choice((0, 1)) if alone else max(0, (kernel - stride) // 2)
            made = self.layer(
                f"nn.ConvTranspose{self.rank}d({inputs}, {outputs}, {kernel}, padding={padding}, "
                f"{settings}, bias={self.maybe()})"
            )
            found = self.put(f"{made}({x})", x)
            if found:
                terms.append((self.norm(found) if self.maybe() else None) or found)
        if len(terms) > 1:
            self.put(" + ".join(terms), *terms)

    def computed(self) -> None:
        """A conv whose weight is computed from parameters."""
        x = self.pick()
        inputs = self.channels(x)
        outputs = self.dice.choice((inputs, *CHANNELS))
        kind = f"conv{self.rank}d"
        ones = ", ".join(["1"] * self.rank)
        weight = self.parameter(outputs, inputs, *[3] * self.rank)
        small = self.parameter(outputs, inputs, *[1] * self.rank)
        scale = self.parameter(outputs, 1, *[1] * self.rank)
        around = ", ".join(["1, 1"] * self.rank)
        formulas = (
            f"{weight} * {scale}",
            f"{weight} + F.pad({small}, ({around}))",
            f"{weight} - {weight}.mean(dim=1, keepdim=True)",
            f"{weight} / {weight}.flatten(1).norm(dim=1).reshape(-1, 1, {ones})",
            f"torch.tanh({weight})",
        )
        if self.maybe(0.3):
            made = self.layer(
                "torch.nn.utils.parametrizations.weight_norm("
                f"nn.Conv{self.rank}d({inputs}, {outputs}, 3, padding=1))"
            )
            self.put(f"{made}({x})", x)
            return
        self.put(f"F.{kind}({x}, {self.dice.choice(formulas)}, padding=1)", x)

    def shared(self) -> None:
        """A layer that is there already, once more."""
        layers = [
            n for n, source in self.layers.items() if source.startswith("nn.") and "(" in source
        ]
        layers = [n for n in layers if not self.layers[n].startswith("nn.Parameter")]
        if layers:
            x = self.pick()
            self.put(f"self.{self.dice.choice(layers)}({x})", x)

    # What is done per channel.

    def norm(self, x: str | None = None) -> str | None:
        x = x or self.pick()
        settings = self.dice.choice(
            ("",) * 8 + (", affine=False", ", eps=0.1", ", track_running_stats=False")
        )
        made = self.layer(f"nn.BatchNorm{self.rank}d({self.channels(x)}{settings})")
        return self.put(f"{made}({x})", x)

    def constant(self, x: str | None = None) -> str | None:
        """Arithmetic with a constant of any shape that keeps the value's own."""
        x = x or self.pick()
        c, ones = self.channels(x), (1,) * self.rank
        shapes: list[tuple[int, ...]] = [(), (1,), (c, *ones), (c, *ones), (1, c, *ones)]
        size = tuple(self.values[x][0].shape[2:])
        if all(tuple(value.shape[2:]) == size for value in self.values[x]):
            shapes += [size[-1:], (c, *size), (1, 1, *size), (c, *ones[1:], size[-1])]
        if self.maybe(0.2):
            number = self.dice.choice(("0.5", "2", "-1.5", "3.0", "0"))
        else:
            number = self.parameter(*self.dice.choice(shapes))
        forms = (
            f"{x} * {number}", f"{number} * {x}", f"{x} + {number}", f"{x} - {number}",
            f"{number} - {x}", f"{x} / {number}", f"-{x}", f"torch.mul({x}, {number})",
            f"torch.add({x}, {number})", f"torch.sub({x}, {number})", f"{number} / {x}",
        )  # fmt: skip
        form = self.dice.choices(forms, (4, 2, 4, 2, 1, 1, 0.5, 1, 1, 0.5, 0.2))[0]
        return self.put(form, x)

    def plain(self, x: str | None = None) -> str | None:
        """An activation, or what does nothing."""
        x = x or self.pick()
        name = self.dice.choice(ACTIVATIONS)
        forms = [f"torch.{name}({x})", f"F.relu({x})", f"{x}.relu()", f"{x}.contiguous()"]
        forms += [f"{x}.clone()", f"F.dropout({x}, 0.5, self.training)"]
        if self.maybe(0.4):
            made = self.dice.choice(("ReLU()", "SiLU()", "Identity()", "Dropout(0.5)", "GELU()"))
            return self.put(f"{self.layer(f'nn.{made}')}({x})", x)
        return self.put(self.dice.choice(forms), x)

    def gate(self) -> None:
        x = self.pick()
        axes = ", ".join(str(2 + axis) for axis in range(self.rank))
        other = self.dice.choice(self.alike(x))
        form = self.dice.choice(
            (f"{x} * {other}", f"{x} * torch.sigmoid({x}.mean(dim=({axes},), keepdim=True))")
        )
        self.put(form, x, other)

    # Sums and concats.

    def join(self) -> None:
        x = self.pick()
        terms = [self.dice.choice(self.alike(x)) for _ in range(self.dice.choice((2, 2, 2, 3, 4)))]
        self.put(self.joined(terms), *terms)

    def joined(self, terms: list[str]) -> str:
        """A sum, a difference or a mean, in one of many spellings."""
        first, second = terms[0], terms[1]
        forms = [" + ".join(terms)] * 5 + [f"sum([{', '.join(terms)}])"]
        forms += [f"{first} - {second}", f"torch.add({first}, {second}, alpha=0.5)"]
        forms += [f"torch.stack([{', '.join(terms)}]).{self.dice.choice(('sum', 'mean'))}(dim=0)"]
        forms += [f"({' + '.join(terms)}) / {len(terms)}", f"{first}.add({second})"]
        return self.dice.choice(forms)

    def branches(self) -> None:
        """Parallel branches of one value, joined at once."""
        x = self.pick()
        outputs = self.dice.choice((self.channels(x), self.channels(x), *CHANNELS))
        terms: list[str] = []
        for _ in range(self.dice.choice((2, 2, 3, 4))):
            skip = outputs == self.channels(x) and self.maybe(0.2)
            y = x if skip else self.same(x, outputs)
            for step, chance in ((self.norm, 0.5), (self.constant, 0.2), (self.plain, 0.06)):
                if y and self.maybe(chance):
                    y = step(y) or y
            terms += [y] if y else []
        if len(terms) < 2:
            return
        if self.maybe(0.15):
            self.put(f"torch.cat([{', '.join(terms)}], dim=1)", *terms)
            return
        made = self.put(self.joined(terms), *terms)
        if made and self.maybe(0.4):
            self.norm(made) if self.maybe() else self.plain(made)

    def concat(self) -> None:
        x = self.pick()
        sizes = [value.shape[2:] for value in self.values[x]]
        parts = [n for n, v in self.values.items() if [one.shape[2:] for one in v] == sizes]
        chosen = [self.dice.choice(parts) for _ in range(self.dice.choice((2, 2, 3)))]
        if sum(self.channels(name) for name in chosen) <= 16:
            self.put(f"torch.cat([{', '.join(chosen)}], dim=1)", *chosen)

    def part(self) -> None:
        """Some channels."""
        x = self.pick()
        channels = self.channels(x)
        if channels < 2:
            return
        half = self.dice.randrange(1, channels)
        forms = [f"{x}[:, :{half}]", f"{x}[:, {half}:]", f"{x}.narrow(1, 0, {half})"]
        forms += [f"{x}[:, ::2]", f"{x}.chunk(2, dim=1)[{self.dice.choice((0, 1))}]"]
        forms += [
            f"torch.split({x}, [{half}, {channels - half}], dim=1)[{self.dice.choice((0, 1))}]"
        ]
        forms += [
            f"{x}[:, {[self.dice.randrange(channels) for _ in range(half)]}]",
            f"{x}[:, {half}]",
        ]
        self.put(self.dice.choice(forms), x)

    def shuffle(self) -> None:
        x = self.pick()
        channels = self.channels(x)
        if channels % 2:
            return
        places = ", ".join(f"{x}.shape[{2 + axis}]" for axis in range(self.rank))
        self.put(
            f"{x}.view({x}.shape[0], 2, {channels // 2}, {places}).transpose(1, 2)"
            f".reshape({x}.shape[0], {channels}, {places})",
            x,
        )

    # Others.

    def pool(self) -> None:
        x = self.pick()
        kind = self.dice.choice(("Avg", "Avg", "Avg", "Max"))
        kernel, stride = self.dice.choice(((3, 1), (2, 2), (3, 2), (2, 1)))
        settings = f"{kernel}, {stride}, padding={self.dice.choice((0, 1))}"
        if self.maybe(0.2):
            settings += ", ceil_mode=True"
        if kind == "Avg" and self.maybe(0.3):
            settings += ", count_include_pad=False"
        if self.maybe(0.1):
            self.put(f"F.adaptive_avg_pool{self.rank}d({x}, 1)", x)
            return
        self.put(f"{self.layer(f'nn.{kind}Pool{self.rank}d({settings})')}({x})", x)

    def pad(self) -> None:
        x = self.pick()
        amounts = ", ".join(str(self.dice.choice((0, 1, 1, 2))) for _ in range(2 * self.rank))
        mode = self.dice.choice(("'constant'",) * 2 + ("'reflect'", "'replicate'", "'circular'"))
        if mode == "'constant'" and self.maybe(0.3):
            mode += ", value=0.5"
        self.put(f"F.pad({x}, ({amounts}), mode={mode})", x)

    def inplace(self) -> None:
        """A value is changed where it is, also under its other names."""
        x = self.pick()
        if x == "x":  # the caller's own
            return
        other = self.dice.choice(self.alike(x))
        half = max(1, self.channels(x) // 2)
        forms = [f"{x}.relu_()", f"F.relu({x}, inplace=True)", f"{x}.mul_(0.5)", f"{x} += {other}"]
        forms += [f"{x} += 1.5", f"{x}.add_({other})", f"{x}[:, :{half}] = 0.0", f"{x} *= 2"]
        forms += [f"{x}[..., 0] += 1", f"{x}.neg_()", f"{x}[:, :{half}].mul_(3.0)"]
        self.does(self.dice.choice(forms), x, other)

    def tokens(self) -> None:
        """A Linear along the channels, with the channels last in between."""
        x = self.pick()
        inputs = self.channels(x)
        outputs = self.dice.choice((inputs, *CHANNELS))
        made = self.layer(f"nn.Linear({inputs}, {outputs}, bias={self.maybe()})")
        inner = f"{made}({x}.movedim(1, -1))"
        if self.maybe(0.3):
            inner = f"{self.layer(f'nn.LayerNorm({outputs})')}({inner})"
        if self.maybe(0.3):
            inner = f"({inner} * {self.parameter(outputs)})"
        self.put(f"{inner}.movedim(-1, 1)", x)

    def odd(self) -> None:
        """What has nothing to do with channels, or looks like something that it is not."""
        x = self.pick()
        first = self.values[x][0]
        forms = [f"{x}.flip(-1)", f"{x} + {x}.shape[0]", f"{x} * {x}.size(1)", f"{x}.detach()"]
        forms += [f"{x}.transpose(-1, -2)" if self.rank > 1 else f"{x}.roll(1, -1)"]
        forms += [
            f"{x}.roll(1, 1)",
            f"{x}.cumsum(dim=1)",
            f"{x}.view_as({x})",
            f"{x}[:, None].squeeze(1)",
        ]
        forms += [f"{x}.permute({', '.join(map(str, range(first.dim())))})", f"{x}.expand_as({x})"]
        self.put(self.dice.choice(forms), x)

    def block(self) -> None:
        """A submodule with statements of its own."""
        if len(self.classes) >= 2 or isinstance(self, _Inner):
            return
        x = self.pick()
        inner = _Inner(self.dice, self.rank, [v.clone() for v in self.values[x]], self.classes)
        inner.write(self.dice.choice((3, 5)))
        name = f"Block{len(self.classes)}"
        last = list(inner.values)[-1]
        body = inner.body(name, last)
        self.classes.append(body)
        self.names.update(run("\n\n".join(one.source() for one in self.classes)))
        made = self.layer(f"{name}()", "block")
        self.put(f"{made}({x})", x)
        if self.maybe(0.2):
            self.put(f"{made}({self.dice.choice(self.alike(x))})", x)


class _Inner(_Writer):
    """Writes a submodule: no classes of its own."""


def example(seed: int) -> Any:
    """The program of one seed."""
    return random_program(random.Random(seed))
