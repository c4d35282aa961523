"""Values of random modules that are kept, changed where they are, or stand in a branch."""

from __future__ import annotations

import ast

from tests.campaign.code import loaded, parsed, stored
from tests.campaign.rewire import Rewire

__all__ = ["State"]


class State(Rewire):
    """Changes of what becomes of values."""

    def keep(self) -> bool:
        """A value is kept on self, or in a buffer, and perhaps read from there."""
        owner = self.owner()
        init, function = self.init(owner), self.function(owner)
        if init is None or function is None:
            return False
        index = self.dice.randint(1, len(function.body)) if len(function.body) > 1 else 1
        values = [v for v in self.visible(function, index) if v != "x"]
        if not values or isinstance(function.body[index - 1], ast.Return):
            return False
        v, name = self.dice.choice(values), self.fresh("kept")
        form = self.dice.choice(("value", "value", "list", "count", "buffer", "dict"))
        first = {"value": "None", "list": "[]", "count": "0", "dict": "{}"}.get(form)
        if first is None:
            init.body += parsed(f"self.register_buffer('{name}', torch.zeros(1))")
        else:
            init.body += parsed(f"self.{name} = {first}")
        keep = f"self.{name}"
        buffer = [f"{keep} += {v}.mean()", f"{keep}.copy_({v}.mean())", f"{keep} = {v}.mean()"]
        buffer += [f"{keep}.mul_(0.9).add_({v}.max())"]
        lines = {
            "value": f"{keep} = {v}", "list": f"{keep} = [{v}]", "count": f"{keep} += 1",
            "dict": f"{keep}['a'] = {v}", "buffer": self.dice.choice(buffer),
        }[form]  # fmt: skip
        read = {
            "value": f"self.{name}", "list": f"self.{name}[0]", "dict": f"self.{name}['a']",
            "buffer": f"({v} + self.{name})",
            "count": f"({v} * (2 if self.{name} % 2 else 1))",
        }[form]  # fmt: skip
        function.body[index:index] = parsed(lines)
        if self.maybe(0.6):
            self._values_as(function.body[index + 1 :], v, read, 0.5)
        return True

    def _values_as(self, statements: list[ast.stmt], name: str, wanted: str, chance: float) -> None:
        """A variable is read in another way."""
        code = self

        class Reader(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.AST:
                if node.id == name and isinstance(node.ctx, ast.Load) and code.maybe(chance):
                    return ast.parse(wanted, mode="eval").body
                return node

        for one in statements:
            Reader().visit(one)

    def change(self) -> bool:
        """A value is changed where it is, by another name or a view of it perhaps."""
        owner = self.owner()
        function = self.function(owner)
        if function is None or len(function.body) < 2:
            return False
        index = self.dice.randint(1, len(function.body) - 1)
        values = self.visible(function, index)
        if not values:
            return False
        v, w = self.dice.choice(values), self.dice.choice(values)
        name = self.fresh("same")
        views = [v, v, f"{v}[:, :2]", f"{v}.chunk(2, 1)[0]", f"{v}.view_as({v})", f"{v}.detach()"]
        views += [f"{v}.flatten(1)", f"{v}.transpose(1, -1)", f"{v}[..., :1]"]
        views += [f"self.training or {v}"]
        changes = [f"{name} += 0.5", f"{name}.relu_()", f"{name}.mul_(0.5)", f"{name} -= {w}"]
        changes += [f"{name}.add_({w})", f"{name} *= {v}.mean()", f"{name}[:, 0] = 0.0"]
        changes += [f"F.relu({name}, inplace=True)", f"torch.add({v}, 1, out={name})"]
        changes += [f"{name}.copy_({w})"]
        first = parsed(f"{name} = {self.dice.choice(views)}")
        second = self.dice.randint(index, len(function.body) - 1)
        function.body[second:second] = parsed(self.dice.choice(changes))
        function.body[index:index] = first
        if self.maybe(0.4):
            self._values_as(function.body[second + 2 :], v, name, 0.5)
        return True

    def rename(self) -> bool:
        """A name is used again for the next value, as it mostly is in code that people write."""
        owner = self.owner()
        function = self.function(owner)
        if function is None:
            return False
        done = False
        for index, one in enumerate(function.body):
            if not isinstance(one, ast.Assign) or not isinstance(one.targets[0], ast.Name):
                continue
            name, later = one.targets[0].id, function.body[index + 1 :]
            everywhere = [n for n in loaded(function.body[:index]) if n == name]
            free = [n for n in loaded([one]) if n in self.visible(function, index)]
            free = [n for n in free if n not in loaded(later) and n not in stored(later)]
            if everywhere or not free or self.maybe(0.3):
                continue
            new, done = self.dice.choice(free), True
            one.targets[0].id = new
            for node in [node for each in later for node in ast.walk(each)]:
                if isinstance(node, ast.Name) and node.id == name:
                    node.id = new
        return done

    def wrap(self) -> bool:
        """Statements stand in a branch, in a try, in a loop, or under no_grad."""
        place = self.place()
        if place is None:
            return False
        init = self.init(place.owner)
        flag = self.fresh("flag")
        values = self.visible(place.function, place.start) or ["x"]
        v = self.dice.choice(values)
        heads = [
            "with torch.no_grad():\n    pass", "try:\n    pass\nexcept ValueError:\n    raise",
            "for _ in range(1):\n    pass", f"if self.{flag}:\n    pass",
            "if not self.training:\n    pass", f"if {v}.shape[0] > 0:\n    pass",
            "with torch.enable_grad():\n    pass", "for _ in range(2):\n    pass",
            f"if not torch.is_tensor({v}):\n    return {v}\nelse:\n    pass",
            f"if {v}.shape[-1] > 6:\n    return {v}\nelse:\n    pass",
            f"if {v}.requires_grad and self.training:\n    pass\nelse:\n    pass",
            f"if {v} is None:\n    {v} = 0\nelse:\n    pass", "while True:\n    pass\n    break",
        ]  # fmt: skip
        if init is not None:
            init.body += parsed(f"self.{flag} = True")
        (head,) = parsed(self.dice.choice(heads))
        last = getattr(head, "orelse", None) or head.body  # type: ignore[attr-defined]
        where = next(i for i, one in enumerate(last) if isinstance(one, ast.Pass))
        last[where : where + 1] = place.run()
        place.function.body[place.start : place.end] = [head]
        return True
