"""Fuse and compare every model of a zoo.

python -m tests.sweep --family timm
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sweep.check import Row
from tests.sweep.families import FAMILIES, names
from tests.sweep.process import in_process
from tests.sweep.table import FOLDER, PAGE, append, page, read, write


@click.command(help="Fuse every model of a zoo, each in a process of its own, and compare.")
@click.option("--family", type=click.Choice(list(FAMILIES)), required=True, help="Whose models.")
@click.option("--match", default="*", help="Only names that fit this pattern, as in a shell.")
@click.option("--largest", default=150.0, help="Parameters in millions above which to skip.")
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
    match: str,
    largest: float,
    seconds: float,
    memory: float,
    jobs: int,
    stop_after: float,
    again: bool,
    failed: bool,
    results: Path,
) -> None:
    path, end = results / f"{family}.csv", time.monotonic() + stop_after
    wanted = [name for name in names(family) if fnmatch(name, match)]
    rows = {row.model: row for row in read(path)}
    done = {
        name for name, row in rows.items() if not again and not (failed and row.status == "failed")
    }
    todo = [name for name in wanted if name not in done]

    def one(name: str) -> Row | None:
        if time.monotonic() > end:
            return None
        return in_process(family, name, largest, seconds, memory)

    with _bar(len(wanted)) as bar, ThreadPoolExecutor(jobs) as pool:
        bar.update(bar.task_ids[0], completed=len(wanted) - len(todo))
        for future in as_completed([pool.submit(one, name) for name in todo]):
            row = future.result()
            if row is None:
                continue
            rows[row.model] = row
            append(path, row)
            bar.advance(bar.task_ids[0])
            bar.console.print(f"{row.model}: {row.status} {row.detail} {row.work} {row.error}")
    write(path, rows.values())
    if results == FOLDER:
        PAGE.write_text(page(), "utf-8")
    bad = [row for row in rows.values() if row.status == "failed"]
    for row in bad:
        click.echo(f"failed: {row.model}: {row.detail}")
    click.echo(f"{len(rows)} of {len(names(family))} checked, {len(bad)} failed")
    raise SystemExit(bool(bad))


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Progress]:
    columns = (TextColumn("models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        bar.add_task("models", total=total)
        yield bar


if __name__ == "__main__":
    main()
