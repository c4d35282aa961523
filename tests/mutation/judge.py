"""Run the tests that pass a mutant: a plugin that collects the suite once and forks per mutant.

In the fork the functions of the mutated file get the changed code, in place; nothing is imported
again and no file is written, so a mutant costs little more than its tests. What runs in a process
of its own (commands) sees the unchanged files; the same lines are passed by tests in this process.
"""

from __future__ import annotations

import csv
import gc
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from tests.mutation.mutants import ROOT, Mutant
from tests.mutation.record import Record

CSV = ("place", "kind", "what", "killer", "tried", "left")


class StaleMutant(Exception):
    """A mutant whose code cannot take the place of the old one."""


@dataclass
class Judge:
    """Takes over pytest's loop: a verdict a mutant, appended to a table.

    budget: seconds of tests a mutant, by the notes. end: no mutant is begun after that
    (time.monotonic).
    """

    mutants: list[Mutant]
    record: Record
    table: Path
    budget: float
    end: float

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for mutant in self.mutants:
            if time.monotonic() > self.end:
                break
            killer, tried, left = self.verdict(mutant, items)
            with self.table.open("a", newline="") as file:
                row = (mutant.place, mutant.kind, mutant.what, killer, tried, left)
                csv.writer(file).writerow(row)
        return True

    def verdict(self, mutant: Mutant, items: dict[str, pytest.Item]) -> tuple[str, int, int]:
        """The first red test (empty: none), how many ran at most, how many were not run."""
        known = [test for test in self.record.passing(mutant.file, mutant.lines) if test in items]
        chosen: list[str] = []
        spent = 0.0
        for test in known:
            spent += self.record.seconds.get(test, 0.0)
            if chosen and spent > self.budget:
                break
            chosen.append(test)
        if not chosen:
            return "", 0, len(known)
        killer = _in_fork(mutant, [items[test] for test in chosen], 60 + 5 * spent)
        return killer, len(chosen), len(known) - len(chosen)


def _in_fork(mutant: Mutant, items: list[pytest.Item], limit: float) -> str:
    """The first red test of a mutant, "" if none is; a hang counts as red."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.setpgid(0, 0)
        try:
            answer = _first_red(mutant, items)
        except BaseException as error:
            answer = f"ended with {type(error).__name__}"
        os.write(writer, answer.encode()[:4096])
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + limit
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            return f"no end after {limit:.0f} s"
        time.sleep(0.02)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    return {"": "the process died", "none": ""}.get(said, said)


def _first_red(mutant: Mutant, items: list[pytest.Item]) -> str:
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    put_in_place(mutant)
    first: list[str] = []

    class Reports:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                first.append(report.nodeid)

    manager = items[0].config.pluginmanager
    manager.register(Reports())
    if (terminal := manager.get_plugin("terminalreporter")) is not None:
        manager.unregister(terminal)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if first:
            return first[0]
    return "none"


def put_in_place(mutant: Mutant) -> None:
    """Give the functions of this process the code of the mutant."""
    path = str(ROOT / mutant.file)
    new = dict(_codes(compile(mutant.source, path, "exec")))
    changed = 0
    for thing in gc.get_objects():
        if not isinstance(thing, FunctionType) or thing.__code__.co_filename != path:
            continue
        code = thing.__code__
        replacement = new.get((code.co_qualname, code.co_firstlineno))
        if replacement is None or replacement.co_freevars != code.co_freevars:
            raise StaleMutant(code.co_qualname)
        thing.__code__ = replacement
        changed += 1
    if not changed:
        raise StaleMutant(mutant.file)


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """All code objects by (qualified name, first line)."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield (constant.co_qualname, constant.co_firstlineno), constant
            yield from _codes(constant)
