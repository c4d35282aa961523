"""Take each guard and each step of patching away, and expect a test to turn red.

    python -m tests.mutation --record DIR     run the suite once, note which test passes which line
    python -m tests.mutation --notes DIR      then: one mutant after another

Kinds of mutants (--kinds): a guard deleted, a guard inverted, a part of a guard's condition
deleted, a step of patching deleted. Of a mutant only the tests run that pass its lines; a deleted
guard can be noticed only by tests that take it. Verdicts are appended to DIR/verdicts.csv, and a
second run goes on where the first one stopped. Exit code 1 if a
mutant survives.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

from tests.mutation.judge import CSV, Judge
from tests.mutation.mutants import KINDS, ROOT, Mutant, mutants
from tests.mutation.record import Record


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, metavar="DIR", help="note what the tests pass")
    parser.add_argument("--notes", type=Path, metavar="DIR", help="the notes to go by")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["delete", "invert", "step"])
    parser.add_argument("--match", default="", help="part of FILE:LINE")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests a mutant (60)")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds in all")
    options = parser.parse_args()
    if options.record:
        return record(options.record.resolve(), options.jobs)
    if not options.notes:
        parser.error("--record DIR first, then --notes DIR")

    folder, table = options.notes.resolve(), options.notes.resolve() / "verdicts.csv"
    known = read(table)
    todo = [m for m in mutants(options.kinds, options.match) if key(m) not in known]
    print(f"{len(known)} verdicts are there, {len(todo)} mutants to go", flush=True)
    end = time.monotonic() + options.stop_after
    pool = []
    for job in range(options.jobs):
        if not (worker := os.fork()):
            judge = Judge(todo[job :: options.jobs], Record.of(folder), table, options.budget, end)
            judge_all(judge)
        pool.append(worker)
    for worker in pool:
        os.waitpid(worker, 0)
    return summary(read(table))


def judge_all(judge: Judge) -> NoReturn:
    """Collect the suite in this process and judge; ends the process."""
    import pytest

    os.environ["CI"] = "1"
    os.chdir(ROOT)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(silent, stream)
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--capture=no"]
    code = pytest.main(options, plugins=[judge])
    os._exit(int(code))


def key(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.place, mutant.kind, mutant.what


def read(table: Path) -> dict[tuple[str, str, str], list[str]]:
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        rows = [[row[name] for name in CSV] for row in csv.DictReader(file, CSV)]
        return {(row[0], row[1], row[2]): row[3:] for row in rows}


def summary(verdicts: dict[tuple[str, str, str], list[str]]) -> int:
    total, killed, unseen = Counter[str](), Counter[str](), Counter[str]()
    for (_, kind, _), (killer, tried, left) in verdicts.items():
        total[kind] += 1
        killed[kind] += bool(killer)
        unseen[kind] += not killer and tried == left == "0"
    for (place, kind, what), (killer, *_) in sorted(verdicts.items()):
        if not killer:
            print(f"SURVIVED {kind} {place} {what}")
    for kind, count in total.items():
        note = f"; {unseen[kind]} on lines that no test passes" if unseen[kind] else ""
        print(f"{kind}: {killed[kind]} of {count} turned a test red{note}")
    return 0 if killed == total else 1


def record(folder: Path, jobs: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    spread = ["-n", str(jobs)] if jobs > 1 else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutation.record", *spread]
    settings = {"RECORD": str(folder), "CI": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
