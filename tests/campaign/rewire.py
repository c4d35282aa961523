"""Layers of random modules under other names, in other places, with hooks, and looked into."""

from __future__ import annotations

import ast

from tests.campaign.code import assigned, attributes, parsed
from tests.campaign.doubles import Doubles

__all__ = ["Rewire"]

HOOKS = (
    ("forward_hook", "module, given, output", "return output * 0.5"),
    ("forward_hook", "module, given, output", "return None"),
    ("forward_hook", "module, given, output", "return output + given[0].mean()"),
    ("forward_hook", "module, given, output", "module.seen = 1"),
    ("forward_pre_hook", "module, given", "return (given[0] * 2,)"),
    ("forward_pre_hook", "module, given", "return None"),
)


class Rewire(Doubles):
    """Changes of what is where, and of what it is called."""

    def alias(self) -> bool:
        """A layer has two names, or is reached by a property or by getattr."""
        owner = self.owner()
        init, layers = self.init(owner), self.layers(owner)
        if init is None or not layers:
            return False
        name, _ = self.dice.choice(layers)
        other = self.fresh("again")
        form = self.dice.choice(("name", "name", "property", "getattr", "list", "holder"))
        wanted = {
            "name": f"self.{other}", "property": f"self.{other}", "list": f"self.{other}[0]",
            "getattr": f"getattr(self, '{name}')", "holder": f"self.{other}.inner",
        }[form]  # fmt: skip
        if form == "name":
            init.body += parsed(f"self.{other} = self.{name}")
        elif form == "list":
            kind = self.dice.choice(("nn.ModuleList([{}])", "[{}]", "({},)", "nn.Sequential({})"))
            init.body += parsed(f"self.{other} = {kind.format(f'self.{name}')}")
        elif form == "holder":
            init.body += parsed(f"self.{other} = nn.Module()\nself.{other}.inner = self.{name}")
        self._read_as(owner, name, wanted, 0.6)
        if form == "property":
            (made,) = parsed(f"def {other}(self):\n    return self.{name}")
            assert isinstance(made, ast.FunctionDef)
            made.decorator_list = [ast.Name("property")]
            owner.body.append(made)
        return True

    def _read_as(self, owner: ast.ClassDef, name: str, wanted: str, chance: float = 1.0) -> None:
        """`self.name` is read in another way, outside of the constructor."""
        code = self

        class Reader(ast.NodeTransformer):
            def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
                self.generic_visit(node)
                if ast.unparse(node) == f"self.{name}" and code.maybe(chance):
                    return ast.parse(wanted, mode="eval").body
                return node

        for one in owner.body:
            if isinstance(one, ast.FunctionDef) and one.name != "__init__":
                Reader().visit(one)

    def contain(self) -> bool:
        """Layers lie in a list, a dict or a Sequential, and are taken from there."""
        owner = self.owner()
        init, layers = self.init(owner), self.layers(owner)
        if init is None or len(layers) < 2:
            return False
        chosen = self.dice.sample(layers, min(len(layers), self.dice.choice((2, 2, 3))))
        box = self.fresh("box")
        form = self.dice.choice(("ModuleList", "ModuleDict", "Sequential", "holder"))
        removed = [one for one in init.body if assigned(one) in [name for name, _ in chosen]]
        sources = [ast.unparse(source) for _, source in chosen]
        if form == "ModuleDict":
            inside = ", ".join(
                f"'{name}': {s}" for (name, _), s in zip(chosen, sources, strict=True)
            )
            lines, read = f"self.{box} = nn.ModuleDict({{{inside}}})", "self.{box}['{name}']"
        elif form == "holder":
            lines, read = f"self.{box} = nn.Module()", "self.{box}.{name}"
            lines += "".join(f"\nself.{box}.{n} = {ast.unparse(s)}" for n, s in chosen)
        else:
            inside = ", ".join(sources)
            inside = f"[{inside}]" if form == "ModuleList" else inside
            lines, read = f"self.{box} = nn.{form}({inside})", "self.{box}[{index}]"
        place = min(init.body.index(one) for one in removed)
        init.body[place:place] = parsed(lines)
        init.body = [one for one in init.body if one not in removed]
        for index, (name, _) in enumerate(chosen):
            self._read_as(owner, name, read.format(box=box, name=name, index=index))
            for one in attributes([init]):
                if one.attr == name:
                    return False
        return True

    def tie(self) -> bool:
        """Two layers share a weight, a bias, or the memory of one."""
        owner = self.owner()
        init, layers = self.init(owner), self.layers(owner)
        if init is None or not layers:
            return False
        (name, source), other = self.dice.choice(layers), self.fresh("again")
        part = self.dice.choice(("weight", "weight", "bias", "weight.data"))
        init.body += parsed(f"self.{other} = {ast.unparse(source)}")
        init.body += parsed(f"self.{other}.{part} = self.{name}.{part}")
        self._read_as(owner, name, f"self.{other}", 0.6)
        return True

    def hook(self) -> bool:
        """Something else runs where a layer is called."""
        owner = self.owner()
        init, layers = self.init(owner), self.layers(owner)
        if init is None or not layers:
            return False
        names = [name for name, _ in layers]
        names += [n for n in (assigned(one) for one in init.body) if n.startswith("child")]
        kind, given, does = self.dice.choice(HOOKS)
        name = self.fresh("hooked")
        self.tree.body[0:0] = parsed(f"def {name}({given}):\n    {does}")
        init.body += parsed(f"self.{self.dice.choice(names)}.register_{kind}({name})")
        return True

    def read(self) -> bool:
        """A layer is not only called: its weights, sizes or class are read."""
        owner = self.owner()
        layers, function = self.layers(owner), self.function(owner)
        if not layers or function is None:
            return False
        name, source = self.dice.choice(layers)
        layer, text = f"self.{name}", ast.unparse(source)
        index = self.dice.randint(0, len(function.body) - 1)
        values = self.visible(function, index)
        if not values:
            return False
        v = self.dice.choice(values)
        forms = [f"if isinstance({layer}, nn.Conv2d):\n    {v} = {v} * 2"]
        forms += [f"if hasattr(self, '{name}'):\n    {v} = {v} + 1"]
        forms += [f"{v} = {v} * {layer}.weight.mean()", f"{v} = {v} + {layer}.weight.shape[0]"]
        forms += [f"if {layer}.bias is not None:\n    {v} = {v} - {layer}.bias.sum()"]
        forms += [f"if type({layer}) is nn.Linear:\n    {v} = {v} * 0.5"]
        forms += [f"{v} = {v} * len(list(self.children()))", f"{v} = {v} + {layer}.weight.dim()"]
        forms += [f"{v} = {v} * sum(p.numel() for p in {layer}.parameters())"]
        forms += [f"try:\n    {v} = {v} * {layer}.eps\nexcept AttributeError:\n    {v} = {v} * 3"]
        loop = "for name, one in self.named_children():\n    "
        forms += [f"{loop}{v} = {v} * (2 if name == '{name}' else 1)"]
        lines = self.dice.choice(forms)
        if "Conv" in text and self.maybe(0.3):
            rank = text.partition("d(")[0][-1]
            settings = f"{layer}.stride, {layer}.padding, {layer}.dilation, {layer}.groups"
            self._called_as(
                owner, name, f"F.conv{rank}d({{}}, {layer}.weight, {layer}.bias, {settings})"
            )
            return True
        if self.maybe(0.3):
            forms = [f"{layer}.forward({{}})", f"type({layer}).forward({layer}, {{}})"]
            forms += [
                f"torch.func.functional_call({layer}, dict({layer}.named_parameters()), ({{}},))"
            ]
            forms += [
                f"{layer}.__call__({{}})",
                f"nn.Sequential({layer})({{}})",
                f"[m for m in [{layer}]][0]({{}})",
            ]
            if "Linear" in text:
                forms += [f"F.linear({{}}, {layer}.weight, {layer}.bias)"] * 3
            self._called_as(owner, name, self.dice.choice(forms))
            return True
        function.body[index:index] = parsed(lines)
        return True

    def _called_as(self, owner: ast.ClassDef, name: str, wanted: str) -> None:
        code = self

        class Caller(ast.NodeTransformer):
            def visit_Call(self, node: ast.Call) -> ast.AST:
                self.generic_visit(node)
                if ast.unparse(node.func) == f"self.{name}" and code.maybe(0.8):
                    text = wanted.format(", ".join(map(ast.unparse, node.args)))
                    return ast.parse(text, mode="eval").body
                return node

        for one in owner.body:
            if isinstance(one, ast.FunctionDef) and one.name != "__init__":
                Caller().visit(one)
