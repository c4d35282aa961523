"""Give damaged files to the commands for some time.

python -m tests.hostile --seconds 60 --seed 1 --jobs 1 --keep found
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console

from tests.hostile.mutate import mutate
from tests.hostile.runner import Place, Run, Runner

EACH = 60.0  # seconds between two lines of counts


@dataclass
class Tally:
    """What came of the files until now; shared by the threads."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    lock: threading.Lock = field(default_factory=threading.Lock)
    next: int = 0

    def number(self) -> int:
        with self.lock:
            self.next += 1
            return self.next - 1

    def line(self, elapsed: float) -> str:
        total = self.counts.total()
        parts = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        return (
            f"{total} files in {elapsed:.0f} s ({total / max(elapsed, 1e-9):.2f}/s): {parts}; "
            f"slowest {self.slowest[0]:.1f} s (number {self.slowest[1]})"
        )


@click.command(
    help="Give damaged models to repfuse-onnx and repfuse-check and see that every demand holds: "
    "no traceback, no hang, nothing read or written elsewhere, no output that is not equal. The "
    "same seed gives the same files. Exits with 1 where something does not hold."
)
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--seed", default=0, show_default=True, help="Which files.")
@click.option("--first", default=0, show_default=True, help="The number of the first one.")
@click.option("--count", default=10**9, help="How many files at most.")
@click.option("--jobs", default=1, show_default=True, help="Processes.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="A folder for the files of what failed."
)
def main(seconds: float, seed: int, first: int, count: int, jobs: int, keep: Path | None) -> None:
    console, tally = Console(highlight=False), Tally(next=first)
    start = time.monotonic()

    def work(root: Path) -> None:
        place = Place(root)
        with Runner() as runner:
            while time.monotonic() < start + seconds:
                number = tally.number()
                if number >= first + count:
                    return
                place.clear()
                command, arguments = mutate(seed * 1_000_000 + number, place)
                run = runner.run(place, command, arguments)
                with tally.lock:
                    tally.counts[f"{command.removeprefix('repfuse-')}: {run.outcome}"] += 1
                    tally.slowest = max(tally.slowest, (run.seconds, number))
                    if run.faults or (run.outcome == "not equal" and command == "repfuse-onnx"):
                        _show(console, seed, number, [command, *arguments], run)
                        _keep(keep, seed, number, place, run)

    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(work, Path(folder) / str(job)) for job in range(jobs)}
        while waiting:
            done, waiting = wait(waiting, EACH, FIRST_COMPLETED)
            for job in done:
                job.result()
            if waiting:
                console.print(tally.line(time.monotonic() - start), soft_wrap=True)
    console.print(tally.line(time.monotonic() - start), soft_wrap=True)
    raise SystemExit(any("failure" in name for name in tally.counts))


def _show(console: Console, seed: int, number: int, command: list[str], run: Run) -> None:
    console.rule(f"seed {seed}, file {number}: {run.outcome}")
    console.print(" ".join(command), markup=False, soft_wrap=True)
    for text in (*run.faults, run.stderr[-500:], run.stdout[-700:]):
        console.print(ascii(text), markup=False, soft_wrap=True)


def _keep(keep: Path | None, seed: int, number: int, place: Place, run: Run) -> None:
    if keep is None:
        return
    folder = keep / f"seed{seed}_{number}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.inside, folder, symlinks=True)
    (folder / "said.txt").write_text("\n".join([*run.faults, run.stderr, run.stdout]), "utf-8")


if __name__ == "__main__":
    main()
