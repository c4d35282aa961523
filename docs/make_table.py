"""Write the table of fused networks into README.md and docs/README.zh-CN.md.

    python -m docs.make_table               measure every network, and rewrite both tables
    python -m docs.make_table resnet18      print the rows of these networks

Run it from the root of the checkout; it needs the extra `test`. A row states counts, which are
the same on every machine, and the error as a power of ten that it stays below with a margin.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import repfuse
import tests.torchvision_cpu  # noqa: F401  (before anything imports timm)
from tests.numerics import OpCounts, assert_same, count_ops, randomize

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "README.zh-CN.md")
BEGIN, END = "<!-- table: docs/make_table.py -->\n", "<!-- end of the table -->\n"
MODELS = (
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "repvit_m0_9",
    "ghostnetv3_050",
    "lcnetv2_small",
    "repghostnet_050",
    "iformer_t",
    "shvit_s1",
    "efficientvim_m1",
    "densenet121",
    "resnet18",
)
BY_HAND = ("fuse", "reparameterize", "switch_to_deploy")  # what timm's conversion calls
SMALLEST_BOUND = -14  # the errors are a few ulps, and differ a little from machine to machine


@dataclass(frozen=True)
class Row:
    """One network: its counts before, after repfuse and after timm, and the error of the second."""

    name: str
    before: OpCounts
    after: OpCounts
    timm: OpCounts | None
    error: float

    @property
    def bound(self) -> int:
        """A power of ten that the error stays below, three times as large or more."""
        return max(SMALLEST_BOUND, math.ceil(math.log10(3 * max(self.error, 1e-300))))

    def __str__(self) -> str:
        counts = [_counts(one) for one in (self.before, self.after, self.timm)]
        return f"| {self.name} | {' | '.join(counts)} | < 1e{self.bound} |"


def _counts(ops: OpCounts | None) -> str:
    return "-" if ops is None else f"{ops.conv_modules} / {ops.bn_modules} / {ops.adds}"


def measure(name: str) -> Row:
    """Fuse the timm network, with random weights and statistics, in float64."""
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    model = randomize(timm.create_model(name)).double().eval()
    image = torch.randn(1, *model.default_cfg["input_size"], dtype=torch.float64)
    before = count_ops(model, image)

    converted: OpCounts | None = None
    if any(hasattr(module, method) for module in model.modules() for method in BY_HAND):
        # In float32: some of the conversions make float32 layers whatever the network's dtype.
        single = copy.deepcopy(model).float()
        converted = count_ops(reparameterize_model(single), image.float())

    fused: Any = repfuse.fuse(model)
    return Row(name, before, count_ops(fused, image), converted, assert_same(model, fused, image))


def rows_of(page: Path) -> dict[str, str]:
    """The rows that a page holds, by name of the network."""
    _, table, _ = _split(page)
    return {line.split()[1]: line for line in table.splitlines()[2:]}


def _split(page: Path) -> tuple[str, str, str]:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table, found, after = rest.partition(END)
    assert found, f"{page.name} lacks the markers of the table"
    return before + BEGIN, table, END + after


def write(rows: Sequence[Row]) -> None:
    """Replace the rows of every page; its header, which is translated, stays."""
    for page in PAGES:
        before, table, after = _split(page)
        head = re.findall(r".*\n", table)[:2]
        lines = [f"{row}\n" for row in rows]
        page.write_text(before + "".join(head + lines) + after, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help="print the rows of these; default: write all")
    chosen = parser.parse_args(arguments).models
    rows = []
    for name in chosen or MODELS:
        rows.append(measure(name))
        print(rows[-1], flush=True)
    if not chosen:
        write(rows)


if __name__ == "__main__":
    main()
