"""Every `require` in every pass has a row in a `refuses` table."""

from __future__ import annotations

import ast
import traceback
from pathlib import Path

import repfuse.passes
from repfuse.passes import PASSES
from tests.mutate_requires import mutants_of, requires_of
from tests.passes import test_alone, test_borders, test_chain, test_slices, test_stacked, test_sums
from tests.passes.tables import Fires, Idle, Refuses, Row

ROWS: list[Row] = [
    row
    for module in (test_alone, test_borders, test_chain, test_slices, test_stacked, test_sums)
    for row in module.ROWS.values()
]
FOLDER = Path(repfuse.passes.__file__).parent


def place(row: Refuses) -> tuple[str, int]:
    """File and line of the `require` that refuses a row."""
    try:
        row.rule.function(*row.operators)
    except Exception as refused:
        frames = traceback.extract_tb(refused.__traceback__)
        frame = next(frame for frame in reversed(frames) if frame.name == row.rule.name)
        assert frame.lineno is not None
        return Path(frame.filename).name, frame.lineno
    raise AssertionError(f"{row} is not refused")


def test_every_require_has_its_row() -> None:
    reached = {place(row) for row in ROWS if isinstance(row, Refuses)}
    missing = []
    for path in FOLDER.glob("*.py"):
        for node in requires_of(ast.parse(path.read_text())):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if not any((path.name, line) in reached for line in lines):
                missing.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not missing, "\n".join(missing)


def test_every_pass_has_rows() -> None:
    fired = {row.rule.name for row in ROWS if isinstance(row, Fires)}
    assert fired == {rule.name for rule in PASSES}
    assert {row.rule.name for row in ROWS if isinstance(row, Idle)} >= {
        rule.name for rule in PASSES if rule.form == "beside" and rule.name != "identity_to_conv"
    }


def test_a_mutant_is_the_pass_without_its_require() -> None:
    source = (FOLDER / "match_border.py").read_text()
    (mutant,) = mutants_of(FOLDER / "match_border.py", parts=False)
    assert mutant.source != source
    assert len(requires_of(ast.parse(source))) == 1
    assert not requires_of(ast.parse(mutant.source))
