"""Check random networks for some time.

python -m tests.campaign --seconds 60 --seed 1
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.campaign.work import Failure, Tally, run

BATCH = 40


@click.command(
    help="Fuse random modules and ONNX graphs and check each. Every second network is a graph, "
    "every tenth a module that is exported, too. A failure is made small, and printed as a script "
    "that shows it. The same seed gives the same networks."
)
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--seed", default=0, show_default=True, help="Which networks.")
@click.option("--first", default=0, show_default=True, help="The number of the first one.")
@click.option("--count", default=10**9, help="How many networks at most.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="A folder for the scripts of what failed."
)
def main(seconds: float, seed: int, first: int, count: int, jobs: int, keep: Path | None) -> None:
    console, tally = Console(), Tally()
    start = time.monotonic()
    end, last = start + seconds, first + count
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=console, transient=True) as bar,
        ProcessPoolExecutor(jobs, context) as pool,
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
            bar.update(task, description=_line(tally, time.monotonic() - start))
    console.print(_line(tally, time.monotonic() - start), highlight=False)
    console.print(f"refusals by rule: {dict(tally.refusals.most_common())}", highlight=False)
    console.print(f"a second fuse found more: {sorted(tally.unstable)}", highlight=False)
    raise SystemExit(bool(tally.failures))


def _show(console: Console, seed: int, failure: Failure, keep: Path | None) -> None:
    console.rule(f"seed {seed}, network {failure.number}: {failure.kind}")
    console.print(failure.said, markup=False, highlight=False)
    console.print(failure.script, markup=False, highlight=False, soft_wrap=True)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"seed{seed}_{failure.number}.py").write_text(failure.script, "utf-8")


def _line(tally: Tally, seconds: float) -> str:
    counts = tally.counts
    return (
        f"{counts['checked']} networks in {seconds:.0f} s ({counts['modules']} modules, "
        f"{counts['graphs']} graphs, {counts['exported']} exported): {counts['fused']} fused "
        f"({counts['regions']} regions), {counts['refused']} with refusals, "
        f"{counts['unstable']} with more for a second fuse, {counts['invalid']} that do not run, "
        f"{len(tally.failures)} FAILED"
    )


if __name__ == "__main__":
    main()
