"""The rows of the tables, and the files that hold them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias, TypeVar

__all__ = ["ExportRow", "Row", "append", "read", "write"]


@dataclass(frozen=True)
class Row:
    """One model of a zoo.

    status: "equal", "skipped" (too large) or "failed", then a detail. Counts are those of one
    forward, before and after: convs, batch norms, linears, adds. work is their sum, hand_written
    that of the zoo's own conversion with its error, where it changes anything. seconds: CPU time of
    plan and rewrite, with their probes; memory: what these took beyond the model, in MB. commit:
    of this repository.
    """

    model: str
    home: str = ""
    status: str = "failed"
    detail: str = ""
    parameters: float = 0.0
    convs: str = ""
    norms: str = ""
    linears: str = ""
    adds: str = ""
    work: str = ""
    hand_written: str = ""
    hand_written_error: str = ""
    error: str = ""
    refusals: int = 0
    seconds: float = 0.0
    memory: int = 0
    commit: str = ""

    @property
    def key(self) -> str:
        return self.model


@dataclass(frozen=True)
class ExportRow:
    """One model that was exported, and fused as an ONNX model.

    status: as above, or "not exported". Counts are nodes of the main graph: nodes all of them, work
    convs, batch norms, Gemms, MatMuls and Adds. own_error: of the exported model in float32,
    against the module in float64; error: of the fused one.
    """

    model: str
    exporter: str = ""
    home: str = ""
    status: str = "failed"
    detail: str = ""
    parameters: float = 0.0
    nodes: str = ""
    convs: str = ""
    norms: str = ""
    work: str = ""
    own_error: str = ""
    error: str = ""
    refusals: int = 0
    seconds: float = 0.0
    memory: int = 0
    commit: str = ""

    @property
    def key(self) -> str:
        return f"{self.model} {self.exporter}"


AnyRow: TypeAlias = Row | ExportRow
R = TypeVar("R", Row, ExportRow)


def read(path: Path, kind: type[R]) -> list[R]:
    """The rows of a file; none where it does not exist. A last one that was cut off is left out."""
    if not path.exists():
        return []
    kinds = {field.name: field.type for field in fields(kind)}
    casts = {"str": str, "int": int, "float": float}
    whole = path.read_text("utf-8").rpartition("\n")[0]
    return [
        kind(**{name: casts[str(kinds[name])](text) for name, text in line.items()})
        for line in csv.DictReader(whole.splitlines())
    ]


def append(path: Path, row: AnyRow) -> None:
    """Add one row; a sweep that is stopped has lost nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = _writer(file, row)
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def write(path: Path, rows: Iterable[AnyRow]) -> None:
    """All rows, sorted by model, in place of what was there."""
    some = sorted(rows, key=lambda row: row.key)
    if not some:
        return
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = _writer(file, some[0])
        writer.writeheader()
        writer.writerows(asdict(row) for row in some)
    part.replace(path)


def _writer(file: object, row: AnyRow) -> csv.DictWriter[str]:
    names = [field.name for field in fields(row)]
    return csv.DictWriter(file, names, lineterminator="\n")  # type: ignore[arg-type]
