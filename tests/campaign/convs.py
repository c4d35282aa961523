"""Convolutions and Linears of random modules, in every spelling, and kernels that are computed."""

from __future__ import annotations

from tests.campaign.writing import CHANNELS, Writer

__all__ = ["Convs"]

MODES = ("reflect", "replicate", "circular")


class Convs(Writer):
    """Moves that make an operator."""

    def _groups(self, inputs: int, outputs: int) -> int:
        fitting = [g for g in (1, 1, 1, 2, inputs) if inputs % g == outputs % g == 0]
        return self.dice.choice(fitting)

    def _outputs(self, inputs: int) -> int:
        return self.dice.choice((inputs, *CHANNELS, 2 * inputs if inputs < 5 else inputs))

    def same(self, x: str | None = None, outputs: int = 0) -> str | None:
        """An operator that keeps the size: a conv of an image, a Linear of tokens."""
        x = x or self.pick()
        if not self.is_image(x):
            return self.linear(x, outputs)
        inputs = self.channels(x)
        outputs = outputs or self._outputs(inputs)
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
            mode = self.dice.choice(("zeros",) * 8 + MODES)
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
        low = self.dice.choice((reach // 2, reach // 2, 0, reach))
        mode = self.dice.choice(("constant",) * 4 + MODES)
        made = self.layer(f"nn.Conv{kind}({sizes}, {settings}, bias={bias})")
        amounts = ", ".join([f"{low}, {reach - low}"] * self.rank)
        return self.put(f"{made}(F.pad({x}, ({amounts}), mode={mode!r}))", x)

    def conv(self) -> None:
        """Any conv."""
        x = self.image()
        inputs = self.channels(x)
        outputs = self._outputs(inputs)
        mode = self.dice.choice(("zeros",) * 8 + MODES)
        made = self.layer(
            f"nn.Conv{self.rank}d({inputs}, {outputs}, {self.each((1, 2, 3))}, "
            f"stride={self.each((1, 1, 2))}, padding={self.each((0, 1, 1))}, "
            f"dilation={self.each((1, 1, 1, 2))}, groups={self._groups(inputs, outputs)}, "
            f"bias={self.maybe()}, padding_mode={mode!r})"
        )
        for _ in range(2 if self.maybe(0.2) else 1):
            self.put(f"{made}({x})", x)

    def strided(self) -> None:
        """Branches that reduce the size alike: convs, pooling and subsampling."""
        x = self.image()
        inputs = self.channels(x)
        outputs = self.dice.choice((inputs, inputs, *CHANNELS))
        kind, terms = f"{self.rank}d", list[str]()
        for kernel in self.dice.choice(((3, 1), (3, 3), (1, 1), (5, 3), (3, 1, 2))):
            form = self.dice.choice(("conv", "conv", "conv", "pool", "slice"))
            if form == "conv" or kernel == 1:
                made = self.layer(
                    f"nn.Conv{kind}({inputs}, {outputs}, {kernel}, stride=2, padding={kernel // 2},"
                    f" groups={self._groups(inputs, outputs)}, bias={self.maybe()})"
                )
                y = self.put(f"{made}({x})", x)
            elif form == "pool" and inputs == outputs:
                pool = self.layer(f"nn.AvgPool{kind}({kernel}, 2, {kernel // 2})")
                y = self.put(f"{pool}({x})", x)
            else:
                steps = ", ".join(["::2"] * self.rank)
                small = self.layer(f"nn.Conv{kind}({inputs}, {outputs}, 1)")
                y = self.put(f"{small}({x}[:, :, {steps}])", x)
            terms += [y] if y else []
        if len({tuple(self.shapes(term)) for term in terms}) == 1 and len(terms) > 1:
            self.put(" + ".join(terms), *terms)

    def transposed(self) -> None:
        x = self.image()
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
            dilation = self.dice.choice((1, 1, 2)) if alone else 1
            made = self.layer(
                f"nn.ConvTranspose{self.rank}d({inputs}, {outputs}, {kernel}, padding={padding}, "
                f"dilation={dilation}, {settings}, bias={self.maybe()})"
            )
            found = self.put(f"{made}({x})", x)
            if found and self.maybe():
                norm = self.layer(f"nn.BatchNorm{self.rank}d({outputs})")
                found = self.put(f"{norm}({found})", found) or found
            terms += [found] if found else []
        if len(terms) > 1:
            self.put(" + ".join(terms), *terms)

    def linear(self, x: str, outputs: int = 0) -> str | None:
        """A product of the last axis with a matrix, in one of many ways."""
        inputs = self.channels(x)
        outputs = outputs or self._outputs(inputs)
        if self.maybe():
            made = self.layer(f"nn.Linear({inputs}, {outputs}, bias={self.maybe()})")
            return self.put(f"{made}({x})", x)
        turned, straight = self.parameter(outputs, inputs), self.parameter(inputs, outputs)
        bias = self.parameter(outputs)
        thin = self.layer(f"nn.Linear({inputs}, 2, bias=False)")
        wide = self.layer(f"nn.Linear(2, {outputs}, bias=False)")
        base = self.layer(f"nn.Linear({inputs}, {outputs})")
        dropped = self.layer("nn.Dropout(0.1)")
        forms = (
            f"F.linear({x}, {turned}, {bias})", f"F.linear({x}, {turned})", f"{x} @ {straight}",
            f"torch.matmul({x}, {turned}.t()) + {bias}", f"{bias} + {x} @ {straight}",
            f"torch.einsum('...i,io->...o', {x}, {straight})",
            f"{base}({x}) + {wide}({thin}({x})) * 0.5",
            f"{base}({x}) + {wide}({thin}({dropped}({x}))) * 2.0",
            f"{base}({x}) + {x} @ {straight}", f"F.linear({x}, {turned} + {straight}.t(), {bias})",
            f"{wide}({thin}({x}))",
            f"torch.addmm({bias}, {x}, {straight})", f"torch.mm({x}, {straight})",
        )  # fmt: skip
        return self.put(self.dice.choice(forms), x)

    def computed(self) -> None:
        """A conv whose weight is computed from parameters."""
        x = self.image()
        inputs = self.channels(x)
        outputs = self.dice.choice((inputs, *CHANNELS))
        kind = f"conv{self.rank}d"
        ones = ", ".join(["1"] * self.rank)
        weight = self.parameter(outputs, inputs, *[3] * self.rank)
        small = self.parameter(outputs, inputs, *[1] * self.rank)
        scale = self.parameter(outputs, 1, *[1] * self.rank)
        around = ", ".join(["1, 1"] * self.rank)
        letters = "dhw"[3 - self.rank :]
        layer = f"nn.Conv{self.rank}d({inputs}, {outputs}, 3, padding=1)"
        if self.maybe(0.4):
            wraps = (
                f"torch.nn.utils.parametrizations.weight_norm({layer})",
                f"torch.nn.utils.parametrizations.spectral_norm({layer})",
                f'torch.nn.utils.parametrize.register_parametrization({layer}, "weight", nn.Tanh())',
                f'torch.nn.utils.parametrize.register_parametrization({layer}, "bias", nn.Tanh())',
            )
            self.put(f"{self.layer(self.dice.choice(wraps))}({x})", x)
            return
        mask = self.parameter(1, inputs, *[3] * self.rank)
        wide = self.parameter(2 * inputs, inputs, *[1] * self.rank)
        deep = self.parameter(outputs, 2 * inputs, *[3] * self.rank)
        mixer = self.parameter(inputs, inputs)
        formulas = (
            f"{weight} * {scale}",
            f"{weight} + F.pad({small}, ({around}))",
            f"{weight} - {weight}.mean(dim=1, keepdim=True)",
            f"{weight} / {weight}.flatten(1).norm(dim=1).reshape(-1, 1, {ones})",
            f"torch.tanh({weight})",
            f"torch.einsum('oi{letters},ij->oj{letters}', {weight}, {mixer})",
            f"F.{kind}({deep}, {wide}.transpose(0, 1))",
            f"{weight} * {mask} + {weight}.flip(-1)",
            f"({weight} - {weight}.mean()) / ({weight}.var() + 1e-5).sqrt() * {scale}",
            f"torch.where({mask} > 0, {weight}, torch.zeros_like({weight}))",
            f"{weight} * torch.softmax({scale}.flatten(), 0).view(-1, 1, {ones})",
        )
        self.put(f"F.{kind}({x}, {self.dice.choice(formulas)}, padding=1)", x)
        if self.maybe(0.3) and self.rank == 2:
            depth = "torch.tensor([[1., 0., -1.], [2., 0., -2.], [1., 0., -1.]])"
            name = f"number{len(self.layers)}"
            sobel = self.layer(
                f'self.register_buffer("{name}", {depth}.repeat({inputs}, 1, 1, 1))', "number"
            )
            factor = self.parameter(inputs, 1, 1, 1)
            self.put(f"F.conv2d({x}, {sobel} * {factor}, padding=1, groups={inputs})", x)
