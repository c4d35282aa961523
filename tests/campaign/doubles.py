"""What random modules hold twice: code that users call by itself, blocks with other numbers."""

from __future__ import annotations

import ast
import copy

from tests.campaign.code import assigned, loaded, method, parsed, stored
from tests.campaign.extract import Extract

__all__ = ["Doubles"]


class Doubles(Extract):
    """Changes that write something a second time."""

    def beside(self) -> bool:
        """A public method that forward does not call, and that does a part of what it does."""
        owner = self.classes()[-1]
        forward = method(owner, "forward")
        last = len(forward.body) - 1 if forward else 0
        if forward is None or last < 1:
            return False
        start, end = (0, self.dice.randint(1, last)) if self.maybe(0.8) else (1, last)
        body = copy.deepcopy(forward.body[start:end])
        made = sorted(stored(body) - {"layer", "index", "key", "first", "second"})
        if not made or any(isinstance(node, ast.Return) for one in body for node in ast.walk(one)):
            return False
        lines = self.dice.choice((f"return {made[-1]}", f"return {', '.join(made)}"))
        name = self.fresh(self.dice.choice(("features", "forward_features", "extract")))
        (function,) = parsed(f"def {name}({ast.unparse(forward.args)}):\n    pass")
        assert isinstance(function, ast.FunctionDef)
        before = stored(forward.body[:start])
        given = [n for n in loaded(body) if n in before and n not in ("self", "x")]
        function.args.args += [ast.arg(name) for name in dict.fromkeys(given)]
        function.body = body + parsed(lines)
        owner.body.append(function)
        return True

    def twin(self) -> bool:
        """A block of the same class with another number."""
        *inner, owner = self.classes()
        init, function = self.init(owner), self.function(owner)
        if init is None or function is None:
            return False
        names = {kind.name: kind for kind in inner}
        calls = [
            (assigned(one), one.value)
            for one in init.body
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call)
        ]
        found = [(n, c) for n, c in calls if n and ast.unparse(c.func) in names]
        if not found:
            return False
        name, call = self.dice.choice(found)
        own = self.init(names[ast.unparse(call.func)])
        options = [
            node
            for node in (ast.walk(own) if own else ())
            if isinstance(node, ast.keyword) and node.arg == "bias"
            if isinstance(node.value, ast.Constant)
        ]
        if not options or own is None or call.keywords:
            return False
        option, word = self.dice.choice(options), self.fresh("number")
        assert isinstance(option.value, ast.Constant)
        first = option.value.value
        option.value = ast.Name(word)
        own.args.args.append(ast.arg(word))
        own.args.defaults.append(ast.Constant(first))
        child = self.fresh("child")
        other = copy.deepcopy(call)
        other.keywords.append(ast.keyword(word, ast.Constant(not first)))
        init.body += [*parsed(f"self.{child} = None")]
        made = init.body[-1]
        assert isinstance(made, ast.Assign)
        made.value = other
        for index, one in enumerate(function.body):
            text = ast.unparse(one)
            if isinstance(one, ast.Assign) and f"self.{name}(" in text:
                target = ast.unparse(one.targets[0])
                second = ast.unparse(one.value).replace(f"self.{name}(", f"self.{child}(")
                more = self.dice.choice((f"{target} = {second}", f"{target} = {target} + {second}"))
                function.body[index + 1 : index + 1] = parsed(more)
                return True
        return False

    def loop(self) -> bool:
        """Two layers one after the other, called in a loop over a part of a container."""
        owner = self.owner()
        init, function = self.init(owner), self.function(owner)
        if init is None or function is None:
            return False
        layers = [name for name, _ in self.layers(owner)]
        for index in range(len(function.body) - 1):
            one, other = function.body[index : index + 2]
            before, after = self._called(one, layers), self._called(other, layers)
            if before is None or after is None or before[2] != after[1]:
                continue
            (first, given, _), (second, _, target) = before, after
            box = self.fresh("box")
            kinds = ("nn.ModuleList([{}])", "nn.Sequential({})", "[{}]", "({})")
            listed = f"self.{first}, self.{second}, self.{first}"
            init.body += parsed(f"self.{box} = {self.dice.choice(kinds).format(listed)}")
            heads = (
                f"for layer in self.{box}[:2]:\n    {target} = layer({target})",
                f"for layer in reversed(self.{box}[1:]):\n    {target} = layer({target})",
                f"for index, layer in enumerate(self.{box}):\n    if index < 2:\n"
                f"        {target} = layer({target})",
                f"for name in ('{first}', '{second}'):\n"
                f"    {target} = getattr(self, name)({target})",
                f"for index in range(2):\n    {target} = self.{box}[index]({target})",
                f"{target} = self.{box}[:2]({target})",
                f"first, second, *rest = self.{box}\n{target} = second(first({target}))",
                f"{target} = nn.Sequential(*self.{box}[:2])({target})",
                f"for layer in list(self.{box})[:2]:\n    {target} = {target} + layer({target})",
            )
            lines = f"{target} = {given}\n{self.dice.choice(heads)}"
            function.body[index : index + 2] = parsed(lines)
            return True
        return False

    def _called(self, one: ast.stmt, layers: list[str]) -> tuple[str, str, str] | None:
        """The layer, its argument and the target of `v = self.layer(u)`."""
        if not isinstance(one, ast.Assign) or not isinstance(one.value, ast.Call):
            return None
        call, target = one.value, one.targets[0]
        if not isinstance(call.func, ast.Attribute) or not isinstance(target, ast.Name):
            return None
        if call.func.attr not in layers or len(call.args) != 1 or call.keywords:
            return None
        return call.func.attr, ast.unparse(call.args[0]), target.id
