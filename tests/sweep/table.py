"""The results of a sweep as files: one CSV per family, and docs/zoo.md made from them."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from tests.sweep.check import Row

__all__ = ["FOLDER", "PAGE", "append", "page", "read", "write"]

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "zoo"
PAGE = DOCS / "zoo.md"
NAMES = [field.name for field in fields(Row)]
HEAD = """\
# Every model of timm and torchvision, fused

Each constructor of the two libraries is built with random weights and batch norm statistics, fused
in a process of its own, and compared in float64. A model is *equal* if the fused one gives the same
outputs to 1e-9 of the largest value, keeps its class, changes nothing of the original, and has
nothing left for a second fuse. Where a network lets any rounding grow (deep ones with random
norms do), 30 times the change that the last bit of its input makes is allowed, and the row says so.
Operators are the convolutions, batch norms, linear layers and adds
of one forward. Models above 150 million parameters are left out. The rows of all models are in
[zoo/](zoo/); both are written by

    python -m tests.sweep --family timm
    python -m tests.sweep --family torchvision

"""


def read(path: Path) -> list[Row]:
    """The rows of a file; none where it does not exist."""
    if not path.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    casts = {"str": str, "int": int, "float": float}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{name: casts[str(kinds[name])](text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def append(path: Path, row: Row) -> None:
    """Add one row; a sweep that is stopped has lost nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows, sorted by model."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.model))


def page(folder: Path = FOLDER) -> str:
    """The summary of all families."""
    return HEAD + "\n".join(
        _section(path.stem, read(path)) for path in sorted(folder.glob("*.csv"))
    )


def _section(family: str, rows: list[Row]) -> str:
    by_status = {status: [r for r in rows if r.status == status] for status in ("equal", "failed")}
    equal, failed = by_status["equal"], by_status["failed"]
    lines = [
        f"## {family}",
        "",
        f"{len(rows)} constructors: {len(equal)} equal, {len(failed)} failed, "
        f"{len(rows) - len(equal) - len(failed)} too large. ",
    ]
    if equal:
        worst = max(float(row.error) for row in equal if not row.detail)
        growing = sum(bool(row.detail) for row in equal)
        total, slowest = sum(r.seconds for r in equal), max(r.seconds for r in equal)
        lines.append(
            f"Largest error {worst:.1e}, but for {growing} in which any rounding grows; fusing "
            f"took {total:.0f} s of CPU time in all, {slowest:.1f} s at most. Operators in all: "
            f"{_total(equal, 0)} before, {_total(equal, 1)} after."
        )
    own = [row for row in equal + failed if row.hand_written]
    if own:
        fewer = sum(_after(row) < int(row.hand_written) for row in own)
        lines += [
            "",
            f"{len(own)} have a conversion of their own (timm's `reparameterize_model`): "
            f"{fewer} have fewer operators when fused by repfuse, "
            f"{sum(_after(row) == int(row.hand_written) for row in own)} as many.",
        ]
        wrong = [row for row in own if not _small(row.hand_written_error)]
        for row in wrong:
            lines.append(f"The own conversion of {row.model} is wrong: {row.hand_written_error}.")
    for row in failed:
        lines.append(f"- {row.model}: {row.detail}")
    lines += [
        "",
        "| file | models | operators before | after | largest error | seconds, median |",
        "|---|---|---|---|---|---|",
    ]
    homes: dict[str, list[Row]] = defaultdict(list)
    for row in equal:
        homes[row.home].append(row)
    for home, group in sorted(homes.items()):
        seconds = sorted(row.seconds for row in group)
        lines.append(
            f"| {home} | {len(group)} | {_total(group, 0)} | {_total(group, 1)} | "
            f"{max(float(row.error) for row in group):.0e} | {seconds[len(seconds) // 2]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _total(rows: list[Row], side: int) -> int:
    return sum(int(row.work.split(" -> ")[side]) for row in rows)


def _after(row: Row) -> int:
    return int(row.work.split(" -> ")[1])


def _small(error: str) -> bool:
    try:
        return float(error) <= 1e-9
    except ValueError:
        return False
