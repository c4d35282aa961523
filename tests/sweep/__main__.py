"""Fuse and compare every model of a zoo.

python -m tests.sweep --family timm
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from docs.make_zoo import FOLDER
from docs.make_zoo import main as write_page
from tests.sweep.check import check
from tests.sweep.exported import check_export, sample
from tests.sweep.families import FAMILIES, names
from tests.sweep.process import in_process
from tests.sweep.rows import ExportRow, Row, append, read, write

LIMITS = {False: 150.0, True: 50.0}  # millions of parameters, of a module and of an ONNX model


@dataclass(frozen=True)
class Task:
    """One row to make: what to call in a process, and what the row is without it."""

    check: Callable[..., Any]
    arguments: tuple[Any, ...]
    blank: Row | ExportRow


@click.command(help="Fuse every model of a zoo, each in a process of its own, and compare.")
@click.option("--family", type=click.Choice(list(FAMILIES)), required=True, help="Whose models.")
@click.option("--onnx", is_flag=True, help="A sample of timm, exported and fused as ONNX models.")
@click.option("--sample", "count", default=120, help="How many models that is.")
@click.option("--match", multiple=True, help="Only names that fit this pattern, as in a shell.")
@click.option(
    "--largest", type=float, help="Parameters in millions above which to skip: 150; 50 for ONNX."
)
@click.option("--seconds", default=900.0, help="The time limit of one model.")
@click.option("--memory", default=12.0, help="The memory limit of one model, in GB.")
@click.option("--jobs", default=1, help="Models at a time.")
@click.option("--stop-after", default=float("inf"), help="Start no model after so many seconds.")
@click.option("--again", is_flag=True, help="Check models that have a row already, too.")
@click.option("--failed", is_flag=True, help="Check those again that failed.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=FOLDER, help="The folder of the rows."
)
def main(
    family: str,
    onnx: bool,
    count: int,
    match: tuple[str, ...],
    largest: float | None,
    seconds: float,
    memory: float,
    jobs: int,
    stop_after: float,
    again: bool,
    failed: bool,
    results: Path,
) -> None:
    end = time.monotonic() + stop_after
    path = results / (f"{family}-onnx.csv" if onnx else f"{family}.csv")
    limit = largest if largest is not None else LIMITS[onnx]
    tasks = _exports(count, limit) if onnx else _modules(family, limit)
    wanted = [t for t in tasks if any(fnmatch(t.blank.model, m) for m in match or "*")]
    kind: type[Any] = ExportRow if onnx else Row
    rows = {row.key: row for row in read(path, kind)}
    write(path, rows.values())  # without what was cut off, or done twice
    todo = [t for t in wanted if again or not _done(rows.get(t.blank.key), limit, failed)]
    commit = _commit()

    def one(task: Task) -> Row | ExportRow | None:
        if time.monotonic() > end:
            return None
        found = in_process(task.check, *task.arguments, seconds=seconds, memory=memory)
        row = replace(task.blank, detail=found) if isinstance(found, str) else found
        return replace(row, commit=commit)

    with _bar(len(wanted)) as bar, ThreadPoolExecutor(jobs) as pool:
        bar.update(bar.task_ids[0], completed=len(wanted) - len(todo))
        for future in as_completed([pool.submit(one, task) for task in todo]):
            row = future.result()
            if row is None:
                continue
            rows[row.key] = row
            append(path, row)
            bar.advance(bar.task_ids[0])
            said = f"{row.key}: {row.status} {row.detail} {row.work} {row.error}"
            bar.console.print(said, markup=False, highlight=False, soft_wrap=True)
    write(path, rows.values())
    if results == FOLDER:
        write_page()
    bad = [row for row in rows.values() if row.status == "failed"]
    for row in bad:
        click.echo(f"failed: {row.key}: {row.detail}")
    click.echo(f"{len(rows)} of {len(tasks)} checked, {len(bad)} failed")
    raise SystemExit(bool(bad))


def _modules(family: str, largest: float) -> list[Task]:
    return [Task(check, (family, name, largest), Row(name)) for name in names(family)]


def _exports(count: int, largest: float) -> list[Task]:
    return [
        Task(check_export, ("timm", name, exporter, largest), ExportRow(name, exporter))
        for name, exporter in sample(count, largest)
    ]


def _done(row: Row | ExportRow | None, largest: float, failed: bool) -> bool:
    """Whether a model need not be checked; one that was left out may not be too large now."""
    if row is None or (failed and row.status == "failed"):
        return False
    return row.status != "skipped" or row.parameters > largest


def _commit() -> str:
    """Of this repository, with a plus if something is not committed; empty outside of one."""
    described = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Progress]:
    columns = (TextColumn("models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        bar.add_task("models", total=total)
        yield bar


if __name__ == "__main__":
    main()
