"""Statements of a random module become methods, functions, blocks and base classes."""

from __future__ import annotations

import ast

from tests.campaign.code import (
    Place,
    arguments,
    attributes,
    loaded,
    method,
    methods,
    parsed,
    stored,
)
from tests.campaign.interface import EXTRA, Interface

__all__ = ["Extract"]


class Extract(Interface):
    """Changes that put some statements elsewhere."""

    def method(self) -> bool:
        """A method of the same class, public or not; of the class, or of none."""
        place = self.place()
        if place is None:
            return False
        name = self.fresh(self.dice.choice(("part", "forward_part", "_part")))
        forms = {
            f"self.{name}({{}})": 8, f"getattr(self, '{name}')({{}})": 0.5,
            f"torch.utils.checkpoint.checkpoint(self.{name}, {{}}, use_reentrant=False)": 0.7,
            f"type(self).{name}(self, {{}})": 0.7, "static": 0.7, "class": 0.5,
        }  # fmt: skip
        form = self.dice.choices(list(forms), list(forms.values()))[0]
        loose = form in ("static", "class")
        first = {"static": "net", "class": "cls, net"}.get(form, "self")
        made = self._function(place, name, first)
        if made is None:
            return False
        function, call, passed = made
        if loose:
            function.decorator_list = [ast.Name(f"{form}method")]
            _renamed(function, "self", "net")
            form = f"self.{name}(self, {{}})"
        self._replace(place, call.replace("CALL", form.format(passed)))
        place.owner.body.append(function)
        return True

    def outside(self) -> bool:
        """A function of the file, which is given the module; or one inside of the method."""
        place = self.place()
        if place is None:
            return False
        name, inside = self.fresh("stage"), self.maybe()
        made = self._function(place, name, "" if inside else "net")
        if made is None:
            return False
        function, call, passed = made
        if inside:
            self._replace(place, call.replace("CALL", f"{name}({passed})"), [function])
            return True
        _renamed(function, "self", "net")
        self._replace(place, call.replace("CALL", f"{name}(self, {passed})"))
        self.tree.body.insert(self.tree.body.index(place.owner), function)
        return True

    def closure(self) -> bool:
        """A lambda of one value."""
        place = self.place(1)
        (one,) = place.run() if place else [None]
        if place is None or not isinstance(one, ast.Assign) or not place.reads():
            return False
        if not isinstance(one.targets[0], ast.Name):
            return False
        name, reads = self.fresh("made"), ", ".join(place.reads())
        value, target = ast.unparse(one.value), one.targets[0].id
        lines = f"{name} = lambda {reads}: {value}\n{target} = {name}({reads})"
        self._replace(place, lines)
        return True

    def block(self) -> bool:
        """A submodule with the layers that only the statements use; others it is given."""
        place = self.place()
        init = self.init(place.owner) if place else None
        if place is None or init is None:
            return False
        if {one.name for one in methods(place.owner)} & {a.attr for a in attributes(place.run())}:
            return False
        name = self.fresh("Part")
        made = self._function(place, "forward", "self")
        if made is None:
            return False
        function, call, passed = made
        others = [one for one in place.owner.body if one is not init]
        uses = [a.attr for one in others for a in attributes([one])]
        moved, given = list[ast.stmt](), list[str]()
        for attr in dict.fromkeys(a.attr for a in attributes(place.run())):
            inside = sum(a.attr == attr for a in attributes(place.run()))
            sources = [one for one in init.body if _makes(one, attr)]
            if attr == "training" or not sources:
                continue
            if inside < uses.count(attr) or len(sources) > 1 or self.maybe(0.1):
                if "buffer" in ast.unparse(sources[0]):  # it would be no buffer of the block
                    return False
                given.append(attr)
            else:
                moved += sources
                init.body.remove(sources[0])
        child = self.fresh("child")
        text = (
            f"class {name}(nn.Module):\n    def __init__(self{''.join(f', {a}' for a in given)}):"
        )
        text += "\n        super().__init__()"
        text += "".join(f"\n        self.{attr} = {attr}" for attr in given)
        (block,) = parsed(text)
        assert isinstance(block, ast.ClassDef) and isinstance(block.body[0], ast.FunctionDef)
        block.body[0].body += moved
        block.body.append(function)
        arguments = ", ".join(f"self.{attr}" for attr in given)
        init.body += parsed(f"self.{child} = {name}({arguments})")
        self._replace(place, call.replace("CALL", f"self.{child}({passed})"))
        self.tree.body.insert(self.tree.body.index(place.owner), block)
        return True

    def inherit(self) -> bool:
        """A base class with the first statements, or a subclass that changes a method."""
        owner = self.owner()
        name = owner.name
        base = self.fresh("Base")
        own = [one for one in methods(owner) if one.name != "__init__" and not one.decorator_list]
        forward = method(owner, "forward")
        if forward is None:
            return False
        place = self.tree.body.index(owner)
        if len(own) > 1 and self.maybe():
            one = self.dice.choice(own)
            if one.args.vararg or one.args.kwarg or one.args.kwonlyargs:
                return False
            passed = ", ".join(arguments(one))
            given = ast.unparse(one.args)
            spelling = self.dice.choice(("super()", f"super({name}, self)"))
            call = f"{spelling}.{one.name}({passed})"
            forms = [f"return {call} * 0.5", f"return torch.relu({call})", f"return {call}"]
            text = f"def {one.name}({given}):\n    {self.dice.choice(forms)}"
            (made,) = ast.parse(f"class {name}({base}):\n" + _indented(text)).body
        else:
            last = len(forward.body) - 1
            if last < 2 or forward.args.vararg or forward.args.kwarg:
                return False
            cut = self.dice.randint(1, last - 1)
            whole = Place(owner, forward, 0, cut)
            alive = [n for n in loaded(forward.body[cut:]) if n in stored(whole.run())]
            if not alive or any(
                isinstance(n, ast.Return) for one in whole.run() for n in ast.walk(one)
            ):
                return False
            names = ", ".join(alive) + ("," if len(alive) > 1 else "")
            call = f"{names} = super().forward({', '.join(arguments(forward))})"
            text = f"def forward({ast.unparse(forward.args)}):\n    {call}"
            (made,) = ast.parse(f"class {name}({base}):\n" + _indented(text)).body
            assert isinstance(made, ast.ClassDef) and isinstance(made.body[0], ast.FunctionDef)
            made.body[0].body += forward.body[cut:]
            (gives,) = ast.parse(f"def f():\n    return {names}").body
            assert isinstance(gives, ast.FunctionDef)
            forward.body[cut:] = gives.body
        owner.name = base
        for node in ast.walk(owner):  # super(Name, self)
            if isinstance(node, ast.Name) and node.id == name:
                node.id = base
        self.tree.body.insert(place + 1, made)
        return True

    def again(self) -> bool:
        """A method or a block is called once more: with another value, or another option."""
        owner = self.owner()
        function = self.function(owner)
        if function is None:
            return False
        found = []
        for index, one in enumerate(function.body):
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call):
                target, called = one.targets[0], one.value.func
                if isinstance(target, ast.Name) and isinstance(called, ast.Attribute | ast.Name):
                    name = called.attr if isinstance(called, ast.Attribute) else called.id
                    known = ("part", "_part", "child", "stage", "block", "made", "forward_part")
                    if name.startswith(known):
                        found.append((index, target.id, one.value, name))
        if not found:
            return False
        index, made, call, name = self.dice.choice(found)
        copied = ast.parse(ast.unparse(call), mode="eval").body
        assert isinstance(copied, ast.Call)
        names = [node for node in ast.walk(copied) if isinstance(node, ast.Name)]
        given = [n for n in names if n.id == "x" or n.id[:1] == "v"]
        visible = self.visible(function, index + 1)
        for node in given:
            if self.maybe(0.4):
                node.id = self.dice.choice(visible)
        text = ast.unparse(copied)
        options = self._options(name)
        if options and self.maybe(0.7):
            more = self.dice.choice(options).format(out=made)
            text = text[:-1] + (f", {more})" if copied.args or copied.keywords else f"{more})")
        forms = [f"{made} = {made} + {text}", f"{made} = {text}", f"{made} += {text}"]
        forms += [f"{text}", f"{made} = {made} - {text} * 0.5"]
        function.body[index + 1 : index + 1] = parsed(self.dice.choice(forms))
        return True

    def _options(self, name: str) -> list[str]:
        """What a function or a block may be given besides."""
        kinds = {"child", "block"}
        texts = [
            ast.unparse(node.args)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef)
            and (node.name == name or (node.name == "forward" and name[:5] in kinds))
        ]
        given = [(option.removeprefix("*, "), uses) for option, _, uses in EXTRA]
        return [use for option, uses in given if any(option in t for t in texts) for use in uses]

    def _replace(self, place: Place, text: str, before: list[ast.stmt] | None = None) -> None:
        place.function.body[place.start : place.end] = [*(before or []), *parsed(text)]


def _makes(one: ast.stmt, attr: str) -> bool:
    """Whether a statement of a constructor makes an attribute."""
    text = ast.unparse(one)
    return text.startswith(f"self.{attr} = ") or f"register_buffer('{attr}'" in text


def _renamed(function: ast.FunctionDef, old: str, new: str) -> None:
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
