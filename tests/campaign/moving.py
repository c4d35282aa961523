"""Windows, axis moves and pieces of images in random modules, and what only looks like one."""

from __future__ import annotations

from tests.campaign.arithmetic import Arithmetic
from tests.campaign.convs import MODES

__all__ = ["Moving"]


class Moving(Arithmetic):
    """Moves that leave the numbers as they are, or take some of them."""

    def pool(self) -> None:
        x = self.image()
        kind = self.dice.choice(("Avg", "Avg", "Avg", "Max"))
        kernel, stride = self.dice.choice(((3, 1), (2, 2), (3, 2), (2, 1)))
        settings = f"{kernel}, {stride}, padding={self.dice.choice((0, 1))}"
        if self.maybe(0.2):
            settings += ", ceil_mode=True"
        if kind == "Avg" and self.maybe(0.3):
            settings += ", count_include_pad=False"
        if kind == "Avg" and self.rank > 1 and self.maybe(0.1):
            settings += ", divisor_override=5"
        if self.maybe(0.15):
            axes = tuple(range(2, 2 + self.rank))
            means = (f"F.adaptive_avg_pool{self.rank}d({x}, 1)", f"{x}.mean({axes}, keepdim=True)")
            self.put(self.dice.choice(means), x)
            return
        if self.maybe(0.3):
            self.put(f"F.{kind.lower()}_pool{self.rank}d({x}, {settings})", x)
            return
        self.put(f"{self.layer(f'nn.{kind}Pool{self.rank}d({settings})')}({x})", x)

    def pad(self) -> None:
        """A border of any mode, by a function or by a layer; with negative amounts, a crop."""
        x = self.image()
        least = -1 if self.maybe(0.2) else 0
        numbers = [self.dice.choice((0, 1, 1, 2, least)) for _ in range(2 * self.rank)]
        amounts = ", ".join(map(str, numbers))
        mode = self.dice.choice(("constant", "constant", *MODES))
        value = self.dice.choice((0.0, 0.0, 0.0, 0.5))
        if self.maybe(0.3):
            names = {"reflect": "Reflection", "replicate": "Replication", "circular": "Circular"}
            names["constant"] = "Constant" if value else "Zero"
            if mode == "reflect" and self.rank == 3:
                return
            last = f", {value}" if value and mode == "constant" else ""
            made = f"nn.{names[mode]}Pad{self.rank}d(({amounts}){last})"
            self.put(f"{self.layer(made)}({x})", x)
            return
        last = f", value={value}" if value and mode == "constant" else ""
        self.put(f"F.pad({x}, ({amounts}), mode={mode!r}{last})", x)

    def crop(self) -> None:
        """A part of the places."""
        x = self.image()
        forms = [":", ":", "1:", ":-1", "1:-1", "::2", "1::2", "2:", ":3"]
        places = ", ".join(self.dice.choice(forms) for _ in range(self.rank))
        self.put(self.dice.choice((f"{x}[:, :, {places}]", f"{x}[..., {places}]")), x)

    def border(self) -> None:
        """A border of what the layer before maps zero to, or of something else; a conv reads it."""
        x = self.image()
        if not self.is_image(x):
            return
        c, ones = self.channels(x), ", ".join(["1"] * (self.rank - 1))
        norm = self.layer(f"nn.BatchNorm{self.rank}d({c})")
        amounts = ", ".join(["1, 1"] * self.rank)
        zero = f"({norm}.bias - {norm}.running_mean * {norm}.weight / "
        zero += f"torch.sqrt({norm}.running_var + {norm}.eps))"
        fill = self.dice.choice((zero, zero, self.parameter(c), "0.0", "1.5"))
        if fill not in ("0.0", "1.5"):
            fill += f".view(1, -1{', ' + ones if ones else ''})"
        lines = [f"F.pad({norm}({x}), ({amounts}))"]
        for axis in range(self.rank):
            for place in ("0", "-1"):
                index = [":"] * self.rank
                index[axis] = place
                lines.append(f"made[:, :, {', '.join(index)}] = {fill}")
        y = self.put("\n".join(lines), x)
        if y and self.maybe(0.8):
            made = self.layer(f"nn.Conv{self.rank}d({c}, {self._outputs(c)}, 3)")
            self.put(f"{made}({y})", y)

    def into_tokens(self) -> None:
        """The channels become the last axis; places may become one axis, or one with the batch."""
        x = self.image()
        if not self.is_image(x):
            return
        c, dims = self.channels(x), self.rank + 2
        turn = ", ".join(map(str, (0, *range(2, dims), 1)))
        flat = (f"{x}.flatten(2)", f"torch.flatten({x}, 2)", f"{x}.reshape({x}.shape[0], {c}, -1)")
        flat += (f"{x}.view({x}.size(0), {c}, -1)", f"{x}.flatten(start_dim=2)")
        last = (
            ".transpose(1, 2)",
            ".permute(0, 2, 1)",
            ".mT",
            ".swapaxes(-1, -2)",
            ".movedim(1, 2)",
        )
        axes = tuple(range(2, dims))
        forms = [f"{x}.permute({turn})", f"{x}.movedim(1, -1)", f"torch.permute({x}, ({turn}))"]
        forms += [f"{x}.transpose(1, -1)", f"{x}.moveaxis(1, -1).contiguous()"]
        forms += [self.dice.choice(flat) + self.dice.choice(last) for _ in range(4)]
        forms += [f"{x}.permute({turn}).flatten(1, -2)", f"{x}.permute({turn}).reshape(-1, {c})"]
        forms += [f"{x}.mean({axes})", f"{x}.flatten(2).mean(-1)", f"{x}.amax({axes})"]
        y = self.put(self.dice.choice(forms), x, axis=-1)
        for _ in range(self.dice.choice((0, 1, 2))):  # what is done with tokens
            if y and y in self.axis:
                step = self.dice.choice((self.linear, self.linear, self.norm, self.constant))
                y = step(y) or y
        if y and y in self.axis and self.maybe(0.4):
            self.out_of_tokens(y)

    def out_of_tokens(self, t: str | None = None) -> None:
        """Back to an image, of the places that another one has."""
        if not self.rank or not self.tokens():
            return
        t = t or self.dice.choice(self.tokens())
        c, dims = self.channels(t), self.values[t][0].dim()
        back = ", ".join(map(str, (0, self.rank + 1, *range(1, self.rank + 1))))
        if dims == self.rank + 2 and self.maybe(0.7):
            forms = [f"{t}.permute({back})", f"{t}.movedim(-1, 1)", f"{t}.transpose(1, -1)"]
            self.put(self.dice.choice(forms), t, axis=1)
            return

        def count(name: str) -> list[int]:
            return [one.numel() // one.shape[self.axis[name]] for one in self.values[name]]

        alike = [n for n in self.axis if self.is_image(n) and count(n) == count(t)]
        if not alike:
            return
        y = self.dice.choice(alike)
        turned = f"{t}.transpose(1, 2)" if dims == 3 else f"{t}.reshape({y}.shape[0], -1, {c}).mT"
        places = ", ".join(f"{y}.shape[{2 + axis}]" for axis in range(self.rank))
        forms = [f"{turned}.reshape({y}.shape[0], {c}, {places})", f"{turned}.reshape_as({y})"]
        forms += [f"{turned}.unflatten(2, {y}.shape[2:])", f"{turned}.unflatten(-1, ({places}))"]
        forms += [f"{t}.reshape({y}.shape[0], {places}, {c}).permute({back})"]
        forms += [f"{turned}.contiguous().view({y}.size(0), {c}, {places})"]
        self.put(self.dice.choice(forms), t, y, axis=1)

    def attention(self) -> None:
        """Three Linears of the same tokens, or some more, and a product of what they make."""
        if not self.tokens():
            return
        t = self.dice.choice(self.tokens())
        if self.values[t][0].dim() != 3:
            return
        c = self.channels(t)
        source = (self.norm(t) if self.maybe() else None) or t
        q, k, v = (self.linear(source, c) for _ in range(3))
        if q and k and v:
            weights = f"torch.softmax({q} @ {k}.transpose(1, 2) / {c} ** 0.5, dim=-1)"
            forms = (f"{weights} @ {v}", f"F.scaled_dot_product_attention({q}, {k}, {v})")
            made = self.put(self.dice.choice(forms), q, k, v)
            if made and self.maybe():
                self.put(f"{t} + {made}", t, made)

    def turns(self) -> None:
        """Axes are moved, and perhaps moved back; what per-channel work in between makes of it."""
        x = self.pick()
        dims = self.values[x][0].dim()
        one, other = self.dice.sample(range(dims), 2) if dims > 1 else (0, 0)
        there = f"{x}.transpose({one}, {other})"
        forms = [
            f"({there} + {there}).transpose({one}, {other})",
            f"{there}.transpose({one}, {other})",
        ]
        forms += [f"({there} * 1.5).transpose({one}, {other})"]
        forms += [
            f"{x}.unsqueeze(2).squeeze(2)",
            f"{x}[:, None].squeeze(1)",
            f"{x}.unsqueeze(0)[0]",
        ]
        forms += [f"{x}.flatten(0, 1).unflatten(0, ({x}.shape[0], -1))", f"{x}.movedim(1, 1)"]
        forms += [f"{x}.reshape({x}.shape)", f"{x}.view({x}.size())", f"{x}.flatten().view_as({x})"]
        forms += [f"{x}.permute({', '.join(map(str, range(dims)))})", f"{x}.expand_as({x})"]
        self.put(self.dice.choice(forms), x)

    def odd(self) -> None:
        """What has nothing to do with channels, or looks like something that it is not."""
        x = self.pick()
        a = self.axis[x]
        forms = [f"{x}.flip(-1)", f"{x} + {x}.shape[0]", f"{x} * {x}.size(1)", f"{x}.detach()"]
        forms += [f"{x}.transpose(-1, -2)", f"{x}.roll(1, -1)", f"{x}.roll(1, {a})"]
        forms += [f"{x}.cumsum(dim={a})", f"{x}.view_as({x})", f"{x}.repeat_interleave(2, dim={a})"]
        forms += [
            f"torch.cat([{x}, {x}.flip({a})], {a})",
            f"{x}.to({x}.dtype)",
            f"{x}.type_as({x})",
        ]
        forms += [f"{x}.sum(dim={a}, keepdim=True)", f"{x} - {x}.mean(dim={a}, keepdim=True)"]
        forms += [f"torch.where({x} > 0, {x}, -{x})", f"{x}.masked_fill({x} > 1, 0.5)", f"{x} ** 2"]
        forms += [f"torch.zeros_like({x}) + {x}", f"{x} + torch.ones({x}.shape[-1])", f"+{x}"]
        if self.rank == 2 and self.is_image(x):
            forms += [f"F.pixel_unshuffle({x}, 2)", f"F.pixel_shuffle({x}, 2)"]
            forms += [f"F.interpolate({x}, scale_factor=2)", f"{x}.rot90(1, (2, 3))"]
            forms += [f"F.unfold({x}, 3, padding=1).view({x}.shape[0], -1, *{x}.shape[2:])"]
            forms += [f"torch.channel_shuffle({x}, 2)", f"F.local_response_norm({x}, 2)"]
        self.put(self.dice.choice(forms), x)
