"""Submodules, layers in containers, Python control flow and changed values of random modules."""

from __future__ import annotations

from tests.campaign.moving import Moving
from tests.campaign.program import run, unread

__all__ = ["Control"]

BLOCKS = 2


class Control(Moving):
    """Moves that are about how a module is written."""

    def shared(self) -> None:
        """A layer that is there already, once more."""
        kinds = ("nn.Parameter", "nn.ModuleList", "nn.ModuleDict")
        layers = [n for n, source in self.layers.items() if source.startswith("nn.")]
        layers = [n for n in layers if not self.layers[n].startswith(kinds)]
        if layers:
            x = self.pick()
            self.put(f"self.{self.dice.choice(layers)}({x})", x)

    def inplace(self) -> None:
        """A value is changed where it is, also under its other names."""
        x = self.pick()
        if x == "x":  # the caller's own
            return
        other = self.dice.choice(self.alike(x))
        half = max(1, self.channels(x) // 2)
        some = f"{x}[:, :{half}]" if self.axis[x] == 1 else f"{x}[..., :{half}]"
        forms = [f"{x}.relu_()", f"F.relu({x}, inplace=True)", f"{x}.mul_(0.5)", f"{x} += {other}"]
        forms += [f"{x} += 1.5", f"{x}.add_({other})", f"{some} = 0.0", f"{x} *= 2"]
        forms += [f"{x}[..., 0] += 1", f"{x}.neg_()", f"{some}.mul_(3.0)", f"{some} += {some}"]
        forms += [f"{x} -= {other}", f"{x}.copy_({other})", f"{x}.sub_({other}, alpha=0.5)"]
        self.does(self.dice.choice(forms))

    def _chain(self, channels: int) -> list[str]:
        """Layers that follow each other and keep the channels."""
        kind = f"{self.rank}d"
        conv = f"nn.Conv{kind}({channels}, {channels}, "
        forms = [f"{conv}3, padding=1)", f"{conv}1, bias=False)", f"nn.BatchNorm{kind}({channels})"]
        forms += [f"{conv}3, padding=1, groups={channels})", f"nn.BatchNorm{kind}({channels})"]
        if self.maybe(0.3):
            forms += ["nn.ReLU()", "nn.Identity()", "nn.ReLU(inplace=True)"]
        if not self.rank:
            forms = [f"nn.Linear({channels}, {channels})", f"nn.LayerNorm({channels})"]
        return [self.dice.choice(forms) for _ in range(self.dice.choice((2, 2, 3)))]

    def several(self) -> None:
        """Layers in a container: one after the other, or side by side, in a loop or in a sum."""
        x = self.image()
        chain = self._chain(self.channels(x))
        inside = ", ".join(chain)
        form = self.dice.choice(("Sequential", "loop", "sum", "dict", "named", "zip"))
        if form == "Sequential":
            self.put(f"{self.layer(f'nn.Sequential({inside})')}({x})", x)
        elif form == "loop":
            made = self.layer(f"nn.ModuleList([{inside}])")
            residual = self.dice.choice(("", "", "made + "))
            self.put(f"{x}\nfor layer in {made}:\n    made = {residual}layer(made)", x)
        elif form == "sum":
            made = self.layer(f"nn.ModuleList([{inside}])")
            spellings = (
                f"sum(layer({x}) for layer in {made})",
                f"torch.stack([layer({x}) for layer in {made}]).sum(0)",
                f"0\nfor layer in {made}:\n    made = made + layer({x})",
                f"{made}[0]({x})\nfor index in range(1, {len(chain)}):\n"
                f"    made += {made}[index]({x})",
            )
            self.put(self.dice.choice(spellings), x)
        elif form == "dict":
            named = ", ".join(
                f'"{letter}": {one}' for letter, one in zip("abc", chain, strict=False)
            )
            made = self.layer(f"nn.ModuleDict({{{named}}})")
            self.put(f"{x}\nfor key, layer in {made}.items():\n    made = layer(made)", x)
        elif form == "named":
            made = self.layer(f"nn.Sequential({inside})")
            self.put(f"{made}[1]({made}[0]({x})) + {x}", x)
        else:
            made, other = (self.layer(f"nn.ModuleList([{inside}])") for _ in range(2))
            self.put(
                f"{x}\nfor first, second in zip({made}, {other}):\n"
                "    made = first(made) + second(made)",
                x,
            )

    def fork(self) -> None:
        """A branch of Python: on a constant, on what is known of a value, or on its size."""
        x = self.pick()
        first = self.dice.choice(self.alike(x))
        other = self.dice.choice(self.alike(x))
        flag, none = self.layer("True", "flag"), self.layer("None", "absent")
        tests = (
            flag, f"not {flag}", "self.training", f"{none} is None", f"{none} is not None",
            f"{x}.dim() == 4", f"{x}.shape[{self.axis[x]}] == {self.channels(x)}",
            f"{x}.shape[-1] > 7", f"{x}.shape[0] == 1", "torch.jit.is_scripting()",
            f"isinstance({x}, torch.Tensor)", f"{x}.is_floating_point()", f"len({x}) > 1",
        )  # fmt: skip
        test = self.dice.choice(tests)
        if self.maybe():
            self.put(f"{first} if {test} else {other}", first, other)
        else:
            self.put(f"{first}\nif {test}:\n    made = made + {other}", first, other)

    def block(self) -> None:
        """A submodule with statements of its own, perhaps with an argument that may be left out."""
        if len(self.classes) >= BLOCKS or self.inner:
            return
        x = self.pick()
        if self.axis[x] != (1 if self.rank else -1):
            return
        inner = type(self)(self.dice, self.rank, [v.clone() for v in self.values[x]], self.classes)
        inner.inner = True
        optional = self.maybe(0.25)
        if optional:
            inner.arguments, inner.names["more"] = "x, more=None", None
            inner.put("x\nif more is not None:\n    made = made + more", "x")
        inner.write(self.dice.choice((3, 5)))
        name = f"Block{len(self.classes)}"
        last = list(inner.values)[-1]
        result = last
        for one in unread(inner.statements, last):
            if inner.shapes(one) == inner.shapes(last):
                result += f" + {one}"
        if self.maybe(0.97):
            inner.prune(result)
        self.classes.append(inner.body(name, result))
        self.names.update(run("\n\n".join(one.source() for one in self.classes)))
        made = self.layer(f"{name}()", "block")
        axis = inner.axis.get(last, 1)
        self.put(f"{made}({x})", x, axis=axis)
        if self.maybe(0.2):
            self.put(f"{made}({self.dice.choice(self.alike(x))})", x, axis=axis)
        if optional and self.maybe(0.6):
            self.put(f"{made}({x}, {self.dice.choice(self.alike(x))})", x, axis=axis)

    inner = False
