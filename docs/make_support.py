"""Write docs/support.md, what becomes of every published block, from the blocks of the tests.

python -m docs.make_support

Run it from the root of the checkout; it needs the extra `test`. Counts are the same on every
machine; errors are given as a power of ten that they stay below with a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tests.models.blocks import FRONTENDS, Case, cases
from tests.models.measure import Measured, measure

PAGE = Path(__file__).parent / "support.md"
SMALLEST_BOUND = -13  # the errors are a few ulps, and differ a little from machine to machine
HEAD = """\
# What becomes of the published blocks

Blocks as they are written for training, each fused as a module and as the ONNX file that torch
exports of it, at three odd sizes and batch 1 and 3, in float64. A cell gives the operators before
and after, and the largest relative error. Before, an operator is whatever runs in one forward,
also arithmetic with weights; in a file, every node but constants and reshapes. "Fewest" is the
smallest number that can compute the block, as a module / as a file where that differs (a Linear on
tokens is two nodes there, a permutation is one); where one operator takes more multiplications than
the block, or is slower, it is asked for by `target="min-ops"` (marked *). Blocks with factors that
depend on the input are fused with `dynamic=True`: their fewest operators are those that compute
the factors, one or two that mix kernels and biases, and the conv. "Functional" blocks call
functions on their parameters instead of layers. Identities are the [passes](passes.md) that made
the new operators. The blocks are in `tests/models/`, this page is written by
`python -m docs.make_support`, and a test measures every cell again.

| block | fewest | module | ONNX file | identities | left because |
|---|---|---|---|---|---|
"""


def text() -> str:
    """The page as it should be."""
    return HEAD + "".join(f"{row(case)}\n" for case in cases())


def row(case: Case) -> str:
    """Everything about one block with one option."""
    found = [measure(case, frontend) for frontend in FRONTENDS]
    star = "" if case.block.target == "cpu" else "*"
    fewest = " / ".join(map(str, dict.fromkeys(map(case.smallest, FRONTENDS))))
    parts = (*map(cell, found), identities(found), _why(case))
    return f"| {case} | {fewest}{star} | {' | '.join(parts)} |"


def cell(found: Measured) -> str:
    """Operators before and after, and what the error stays below."""
    bound = max(SMALLEST_BOUND, math.ceil(math.log10(3 * max(found.error, 1e-300))))
    return f"{found.before} → {found.after}, < 1e{bound}"


def identities(found: Sequence[Measured]) -> str:
    """The passes that were used, once where both frontends used the same."""
    names = [", ".join(measured.passes) or "none" for measured in found]
    if len(set(names)) == 1:
        return names[0]
    return "; ".join(f"{frontend}: {name}" for frontend, name in zip(FRONTENDS, names, strict=True))


def cells_of(page: Path) -> dict[str, list[str]]:
    """The cells of the frontends, and the identities, by block, as the page has them."""
    lines = page.read_text("utf-8").removeprefix(HEAD).splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {name: cells[1:-1] for name, *cells in rows}


def _why(case: Case) -> str:
    gaps = {
        frontend: case.block.gaps[case.option, frontend]
        for frontend in FRONTENDS
        if (case.option, frontend) in case.block.gaps
    }
    reasons = {frontend: gap.reason for frontend, gap in gaps.items()}
    if len(set(reasons.values())) == 1 and len(reasons) == len(FRONTENDS):
        return next(iter(reasons.values()))
    return "; ".join(f"{frontend}: {reason}" for frontend, reason in reasons.items())


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
