"""How statements that become a function get their values, and give them back."""

from __future__ import annotations

import ast

from tests.campaign.code import Code, Place, parsed

__all__ = ["EXTRA", "Interface"]

EXTRA = (
    ("scale=1.0", "{out} = {out} * scale", ("scale=0.5", "scale=2")),
    ("flip=False", "if flip:\n    {out} = -{out}", ("flip=True",)),
    ("mode='a'", "if mode == 'b':\n    return {value}\n{out} = torch.relu({out})", ("mode='b'",)),
    ("more=None", "if more is not None:\n    {out} = {out} + more", ("more={out}",)),
    ("*, steps=1", "for _ in range(steps):\n    {out} = {out} * 0.5", ("steps=2", "steps=0")),
)


class Interface(Code):
    """Code whose statements can become functions."""

    def _interface(self, place: Place) -> tuple[str, list[str], str, str, str] | None:
        """How the statements get their values and give theirs: the parameters, the statements
        that open them, what is returned, what the call passes, and how its result is read."""
        reads, makes = place.reads(), place.makes()
        if not makes or len(reads) > 5 or len(makes) > 4:
            return None
        passed, opening = ", ".join(reads), list[str]()
        style = self.dice.choice(("plain", "plain", "plain", "named", "list", "dict", "many"))
        parameters = passed
        if style == "named":
            passed = ", ".join(f"{name}={name}" for name in reads)
        elif style == "list" and reads:
            bracket = self.dice.choice(("[{}]", "({},)"))
            parameters, passed = "given", bracket.format(passed)
            opening = [f"{name} = given[{place}]" for place, name in enumerate(reads)]
            if self.maybe():
                opening = [f"{', '.join(reads)}, = given"]
        elif style == "dict" and reads:
            parameters = "given"
            passed = "{" + ", ".join(f"'{name}': {name}" for name in reads) + "}"
            opening = [f"{name} = given['{name}']" for name in reads]
        elif style == "many" and reads:
            if self.maybe():
                parameters, opening = "*given", [f"{', '.join(reads)}, = given"]
            else:
                parameters, opening = "**given", [f"{name} = given['{name}']" for name in reads]
                passed = ", ".join(f"{name}={name}" for name in reads)
        names, box = ", ".join(makes), self.fresh("box")
        if len(makes) == 1 and self.maybe(0.7):
            return parameters, opening, names, passed, f"{names} = CALL"
        form = self.dice.choice(("tuple", "tuple", "list", "dict"))
        if form == "dict":
            result = "{" + ", ".join(f"'{name}': {name}" for name in makes) + "}"
            read = "\n".join(f"{name} = {box}['{name}']" for name in makes)
            return parameters, opening, result, passed, f"{box} = CALL\n{read}"
        result = f"({names},)" if form == "tuple" else f"[{names}]"
        if self.maybe():
            return parameters, opening, result, passed, f"{names}, = CALL"
        read = "\n".join(f"{name} = {box}[{index}]" for index, name in enumerate(makes))
        return parameters, opening, result, passed, f"{box} = CALL\n{read}"

    def _function(
        self, place: Place, name: str, first: str
    ) -> tuple[ast.FunctionDef, str, str] | None:
        """A function of the statements, perhaps with an option; the statements that call it as
        CALL, and what it is given."""
        found = self._interface(place)
        if found is None:
            return None
        parameters, opening, result, passed, call = found
        option, closing = "", list[str]()
        if self.maybe(0.3) and "**" not in parameters:
            option, use, _ = self.dice.choice(EXTRA)
            closing = [use.format(out=place.makes()[0], value=result)]
            option = option.removeprefix("*, ") if "*given" in parameters else option
        listed = ", ".join(part for part in (first, parameters, option) if part)
        (made,) = ast.parse(f"def {name}({listed}):\n    pass").body
        assert isinstance(made, ast.FunctionDef)
        after = parsed("\n".join([*closing, f"return {result}"]))
        made.body = [*parsed("\n".join(opening)), *place.run(), *after]
        return made, call, passed
