"""Fuse and compare every model of a zoo.

python -m tests.sweep --family timm
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
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
@click.option("--match", multiple=True, help="Only names that fit this pattern, as in a shell.")
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
    match: tuple[str, ...],
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
    wanted = [name for name in names(family) if any(fnmatch(name, m) for m in match or "*")]
    rows = {row.model: row for row in read(path)}
    todo = [name for name in wanted if again or not _done(rows.get(name), largest, failed)]
    commit = _commit()

    def one(name: str) -> Row | None:
        if time.monotonic() > end:
            return None
        return replace(in_process(family, name, largest, seconds, memory), commit=commit)

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


def _done(row: Row | None, largest: float, failed: bool) -> bool:
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
