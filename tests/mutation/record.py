"""Which tests pass which lines: a plugin for pytest, and what reads its notes.

    pytest -p tests.mutation.record      with RECORD naming a folder for the notes

With pytest-xdist each worker writes notes of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "repfuse/frontends"


class Recorder:
    """Coverage of the frontends, one context a test; survives tests that set a tracer."""

    def __init__(self, folder: Path) -> None:
        import coverage

        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        self.notes = folder / f"{worker}.json"
        self.coverage = coverage.Coverage(
            data_file=str(folder / f"{worker}.coverage"),
            source=[str(ROOT / SOURCE)],
            config_file=False,
            messages=False,
        )
        self.seconds: dict[str, float] = {}
        self.tracer: Any = None

    def start(self) -> None:
        self.coverage.start()
        self.tracer = sys.gettrace()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if sys.gettrace() is not self.tracer:
            self.coverage.stop()
            self.start()
        self.coverage.switch_context(item.nodeid)
        begun = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - begun

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        self.notes.write_text(json.dumps(self.seconds))


def pytest_configure(config: pytest.Config) -> None:
    spread = getattr(config.option, "numprocesses", None)
    if "RECORD" in os.environ and (not spread or "PYTEST_XDIST_WORKER" in os.environ):
        recorder = Recorder(Path(os.environ["RECORD"]))
        config.pluginmanager.register(recorder, "recorder")
        recorder.start()


@dataclass
class Record:
    """Tests by (file, line), and how long each takes."""

    tests: dict[tuple[str, int], set[str]]
    seconds: dict[str, float]

    @classmethod
    def of(cls, folder: Path) -> Record:
        from coverage import CoverageData

        tests: dict[tuple[str, int], set[str]] = defaultdict(set)
        seconds: dict[str, float] = {}
        for notes in folder.glob("*.json"):
            seconds |= json.loads(notes.read_text())
            data = CoverageData(str(notes.with_suffix(".coverage")))
            data.read()
            for path in data.measured_files():
                name = Path(path).relative_to(ROOT).as_posix()
                for line, contexts in data.contexts_by_lineno(path).items():
                    tests[name, line].update(filter(None, contexts))
        return cls(dict(tests), seconds)

    def passing(self, file: str, lines: tuple[int, ...]) -> list[str]:
        """The tests that pass any of these lines, the quickest first."""
        found = set().union(*(self.tests.get((file, line), set()) for line in lines))
        return sorted(found, key=lambda test: (self.seconds.get(test, 0.0), test))
