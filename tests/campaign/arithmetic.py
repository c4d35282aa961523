"""Arithmetic per channel, sums, concats and pieces of random modules."""

from __future__ import annotations

from tests.campaign.convs import Convs
from tests.campaign.writing import CHANNELS

__all__ = ["Arithmetic"]

ACTIVATIONS = ("relu", "sigmoid", "tanh", "abs")
DEEPEST = 16  # channels of a concat


class Arithmetic(Convs):
    """Moves that take values apart and put them together."""

    def norm(self, x: str | None = None) -> str | None:
        """One on running statistics; of tokens, rather one that normalises each."""
        x = x or self.pick()
        channels = self.channels(x)
        settings = self.dice.choice(
            ("",) * 8 + (", affine=False", ", eps=0.1", ", track_running_stats=False")
        )
        if self.is_image(x):
            if self.maybe(0.05):
                forms = (f"nn.GroupNorm(1, {channels})", f"nn.InstanceNorm{self.rank}d({channels})")
                return self.put(f"{self.layer(self.dice.choice(forms))}({x})", x)
            return self.put(
                f"{self.layer(f'nn.BatchNorm{self.rank}d({channels}{settings})')}({x})", x
            )
        dims = self.values[x][0].dim()
        if self.maybe() and dims < 4:
            made = self.layer(f"nn.BatchNorm1d({channels}{settings})")
            inner = x if dims == 2 else f"{x}.transpose(1, 2)"
            return self.put(f"{made}({inner})" + (".transpose(1, 2)" if dims == 3 else ""), x)
        flags = self.dice.choice(("", "", ", elementwise_affine=False"))
        kind = self.dice.choice(("LayerNorm", "RMSNorm"))
        return self.put(f"{self.layer(f'nn.{kind}({channels}{flags})')}({x})", x)

    def constant(self, x: str | None = None) -> str | None:
        """Arithmetic with a constant of any shape that keeps the value's own."""
        x = x or self.pick()
        c, sizes = self.channels(x), self.shapes(x)
        size = tuple(sizes[0][1:])
        fixed = all(tuple(one[1:]) == size for one in sizes)
        ones = (1,) * (len(size) - 1)
        full = (c, *ones) if self.axis[x] == 1 else (*ones, c)
        shapes: list[tuple[int, ...]] = [(), (1,), full, full, (1, *full)]
        shapes += [(c,)] * 2 if self.axis[x] == -1 else []
        if fixed:
            shapes += [size[-1:], size, (1, *size), (1, *size[1:]), (size[0], *ones), (*ones, 1)]
            shapes += [(*size[:-1], 1), size[-2:]]
        if self.maybe(0.2):
            number = self.dice.choice(("0.5", "2", "-1.5", "3.0", "0", "1"))
        else:
            number = self.parameter(*self.dice.choice(shapes))
        forms = (
            f"{x} * {number}", f"{number} * {x}", f"{x} + {number}", f"{x} - {number}",
            f"{number} - {x}", f"{x} / {number}", f"-{x}", f"torch.mul({x}, {number})",
            f"torch.add({x}, {number})", f"torch.sub({x}, {number})", f"{number} / {x}",
            f"torch.add({x}, {number}, alpha=2)", f"torch.rsub({x}, {number})",
            f"torch.addcmul({number}, {x}, {number})", f"{x} * {number} + {number}",
        )  # fmt: skip
        weights = (4, 2, 4, 2, 1, 1, 0.5, 1, 1, 0.5, 0.2, 0.3, 0.2, 0.2, 0.7)
        return self.put(self.dice.choices(forms, weights)[0], x)

    def plain(self, x: str | None = None) -> str | None:
        """An activation, or what does nothing."""
        x = x or self.pick()
        name = self.dice.choice(ACTIVATIONS)
        forms = [f"torch.{name}({x})", f"F.relu({x})", f"{x}.relu()", f"{x}.contiguous()"]
        forms += [f"{x}.clone()", f"F.dropout({x}, 0.5, self.training)", f"F.leaky_relu({x}, 0.1)"]
        forms += [f"torch.clamp({x}, -1.0, 1.0)", f"F.softmax({x}, {self.axis[x]})"]
        if self.maybe(0.4):
            made = self.dice.choice(("ReLU()", "SiLU()", "Identity()", "Dropout(0.5)", "GELU()"))
            return self.put(f"{self.layer(f'nn.{made}')}({x})", x)
        return self.put(self.dice.choice(forms), x)

    def gate(self) -> None:
        """A product of two values: both of the input."""
        x = self.pick()
        other = self.dice.choice(self.alike(x))
        axes = ", ".join(str(2 + axis) for axis in range(self.values[x][0].dim() - 2))
        forms = [f"{x} * {other}"]
        if axes:
            forms += [f"{x} * torch.sigmoid({x}.mean(dim=({axes},), keepdim=True))"] * 2
        self.put(self.dice.choice(forms), x, other)

    def gated(self) -> None:
        """Branches, each times a number that is computed from the input, for each sample."""
        x = self.image()
        if not self.is_image(x):
            return
        ones = ", ".join(["1"] * self.rank)
        count = self.dice.choice((2, 3))
        head = self.layer(f"nn.Linear({self.channels(x)}, {count})")
        form = self.dice.choice(("torch.softmax({}, 1)", "torch.sigmoid({})", "{}"))
        gates = self.put(form.format(f"{head}({x}.flatten(2).mean(2))"), x, axis=-1)
        outputs, terms = self.dice.choice((self.channels(x), *CHANNELS)), list[str]()
        for index in range(count):
            y = self.same(x, outputs)
            if y and gates and self.maybe(0.85):
                terms.append(f"{gates}[:, {index}].view(-1, 1, {ones}) * {y}")
            elif y:
                terms.append(y)
        if gates and len(terms) > 1:
            self.put(" + ".join(terms), x)

    # Sums and concats.

    def join(self) -> None:
        x = self.pick()
        terms = [self.dice.choice(self.alike(x)) for _ in range(self.dice.choice((2, 2, 2, 3, 4)))]
        self.put(self.joined(terms), *terms)

    def joined(self, terms: list[str]) -> str:
        """A sum, a difference or a mean, in one of many spellings."""
        first, second, *rest = terms
        forms = [" + ".join(terms)] * 5 + [f"sum([{', '.join(terms)}])"]
        forms += [f"{first} - {second}", f"torch.add({first}, {second}, alpha=0.5)"]
        forms += [f"torch.stack([{', '.join(terms)}]).{self.dice.choice(('sum', 'mean'))}(dim=0)"]
        forms += [f"({' + '.join(terms)}) / {len(terms)}", f"{first}.add({second})"]
        forms += [f"{first} + ({' - '.join([second, *rest])})", f"torch.sub({first}, {second})"]
        forms += [f"torch.lerp({first}, {second}, 0.25)", f"0.3 * {first} + 0.7 * {second}"]
        return self.dice.choice(forms)

    def spread(self) -> None:
        """The sum of two values that have not the same shape."""
        x = self.pick()
        dims = self.values[x][0].dim()
        others = [n for n in self.axis if self.values[n][0].dim() <= dims and n != x]
        if others:
            other = self.dice.choice(others)
            self.put(self.dice.choice((f"{x} + {other}", f"{other} - {x}")), x, other)

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
            if y and self.maybe(0.15):  # another operator in series
                y = self.same(y, outputs) or y
            terms += [y] if y else []
        if len(terms) < 2:
            return
        if self.maybe(0.15):
            self.put(f"torch.cat([{', '.join(terms)}], dim={self.axis[x]})", *terms)
            return
        made = self.put(self.joined(terms), *terms)
        if made and self.maybe(0.4):
            self.norm(made) if self.maybe() else self.plain(made)

    def concat(self) -> None:
        x = self.pick()
        axis = self.axis[x]

        def rest(name: str) -> list[list[int]]:
            found = [list(shape) for shape in self.shapes(name)]
            return [shape[:axis] + shape[axis + 1 or len(shape) :] for shape in found]

        parts = [n for n in self.axis if self.axis[n] == axis and rest(n) == rest(x)]
        chosen = [self.dice.choice(parts) for _ in range(self.dice.choice((2, 2, 3)))]
        if sum(self.channels(name) for name in chosen) <= DEEPEST:
            self.put(f"torch.cat([{', '.join(chosen)}], dim={axis})", *chosen)

    def part(self) -> None:
        """Some channels."""
        x = self.pick()
        channels, axis = self.channels(x), self.axis[x]
        if channels < 2:
            return
        half = self.dice.randrange(1, channels)
        before = ":, " if axis == 1 else "..., "
        which = self.dice.choice((0, 1))
        several = [self.dice.randrange(channels) for _ in range(half)]
        forms = [f"{x}[{before}:{half}]", f"{x}[{before}{half}:]", f"{x}[{before}::2]"]
        forms += [f"{x}.narrow({axis}, 0, {half})", f"{x}.chunk(2, dim={axis})[{which}]"]
        forms += [f"torch.split({x}, [{half}, {channels - half}], dim={axis})[{which}]"]
        forms += [f"{x}[{before}{several}]", f"{x}[{before}{half}:{half + 1}]"]
        forms += [f"torch.index_select({x}, {axis}, torch.tensor({several}))", f"{x}[:, {half}]"]
        self.put(self.dice.choice(forms), x)

    def partial(self) -> None:
        """Operators on disjoint pieces, put together again."""
        x = self.pick()
        channels, axis = self.channels(x), self.axis[x]
        if channels < 2:
            return
        half = self.dice.choice((channels // 2, self.dice.randrange(1, channels)))
        before = ":, " if axis == 1 else "..., "
        first = self.put(f"{x}[{before}:{half}]", x)
        second = self.put(f"{x}[{before}{half}:]", x)
        pieces = [p and ((self.same(p) if self.maybe(0.7) else None) or p) for p in (first, second)]
        found = [piece for piece in pieces if piece]
        if self.maybe(0.3):
            found.reverse()
        if len(found) == 2:
            self.put(f"torch.cat([{', '.join(found)}], dim={axis})", *found)

    def shuffle(self) -> None:
        x = self.image()
        channels = self.channels(x)
        if channels % 2 or not self.is_image(x):
            return
        places = ", ".join(f"{x}.shape[{2 + axis}]" for axis in range(self.rank))
        if self.maybe():
            inner = f"{x}.unflatten(1, (2, {channels // 2})).transpose(1, 2).flatten(1, 2)"
            self.put(self.dice.choice((inner, inner.replace("transpose", "swapaxes"))), x)
            return
        self.put(
            f"{x}.view({x}.shape[0], 2, {channels // 2}, {places}).transpose(1, 2)"
            f".reshape({x}.shape[0], {channels}, {places})",
            x,
        )
