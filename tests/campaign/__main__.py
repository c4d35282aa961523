"""Check random networks for some time.

python -m tests.campaign --seconds 60 --seed 1

Network n of seed s is always the same one, so runs can be split and added: other seeds, or other
numbers of the same seed (`--first`, `--count`), have no network in common. `--json FILE` keeps the
counts of a run, and `--add FILE` takes those of an earlier one into the summary; a run that is to
go on is started again with `--first` at the `next` of its file.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.campaign.summary import line, show
from tests.campaign.work import Failure, Tally, run

BATCH = 40
BATCHES = 50  # of one process


@click.command(
    help="Fuse random modules and ONNX graphs and check each. Every second network is a graph; a "
    "share is exported, planned twice, run at other sizes and verified, too. A failure is made "
    "small, and printed as a script that shows it. The same seed gives the same networks."
)
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--seed", default=0, show_default=True, help="Which networks.")
@click.option("--first", default=0, show_default=True, help="The number of the first one.")
@click.option("--count", default=10**9, help="How many networks at most.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="A folder for the scripts of what failed."
)
@click.option(
    "--json", "file", type=click.Path(path_type=Path), help="A file for the counts, as JSON."
)
@click.option(
    "--add",
    "earlier",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="A file of an earlier run, whose counts are added.",
)
def main(
    seconds: float,
    seed: int,
    first: int,
    count: int,
    jobs: int,
    keep: Path | None,
    file: Path | None,
    earlier: tuple[Path, ...],
) -> None:
    console, tally = Console(), Tally()
    for one in earlier:
        tally.add(Tally.from_dict(json.loads(one.read_text("utf-8"))))
    start = time.monotonic()
    end, last = start + seconds, first + count
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")

    def save() -> None:
        tally.next = first
        if file is not None:
            file.write_text(json.dumps({"seed": seed, **tally.to_dict()}, indent=1), "utf-8")

    with (
        Progress(*columns, console=console, transient=True) as bar,
        ProcessPoolExecutor(jobs, context, max_tasks_per_child=BATCHES) as pool,
    ):
        task = bar.add_task("starting")
        waiting: set[Future[Tally]] = set()
        while waiting or (first < last and time.monotonic() < end):
            while first < last and len(waiting) < jobs + 1 and time.monotonic() < end:
                waiting.add(pool.submit(run, seed, range(first, min(first + BATCH, last)), end))
                first += BATCH
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                found = future.result()
                tally.add(found)
                for failure in found.failures:
                    _show(console, seed, failure, keep)
            tally.wall += (now := time.monotonic()) - start
            start = now
            bar.update(task, description=line(tally))
            save()
    save()
    show(console, tally)
    raise SystemExit(bool(tally.failures))


def _show(console: Console, seed: int, failure: Failure, keep: Path | None) -> None:
    console.rule(f"seed {seed}, network {failure.number}: {failure.kind}")
    console.print(failure.said, markup=False, highlight=False)
    console.print(failure.script, markup=False, highlight=False, soft_wrap=True)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"seed{seed}_{failure.number}.py").write_text(failure.script, "utf-8")


if __name__ == "__main__":
    main()
