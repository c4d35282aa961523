"""Ctrl-C at any event of a run: what Python code would be interrupted in the middle of."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import repfuse

HOME = str(Path(repfuse.__file__).parent)
# Where contexts are entered and left, in which a half-finished step would be left behind.
AROUND = ("contextlib.py", "_symbolic_trace.py", "grad_mode.py", "tempfile.py", "shutil.py")
STEPS = (
    *("interruption.py", "alone.py", "watch.py", "draws.py", "snapshot.py", "tables.py"),
    *("collector.py", "patch.py", "staging.py", "torch/plan.py", *AROUND),
)


class Events:
    """The events of repfuse's code, counted; the last of each line that takes or undoes a step."""

    def __init__(self, at: int = 0, number: int = signal.SIGINT) -> None:
        self.count = 0
        self.steps: dict[tuple[Any, ...], int] = {}
        self._at, self._number = at, number
        self._ours: dict[CodeType, bool] = {}

    def run(self, work: Callable[[], object]) -> None:
        """Run the work; at the event of that number, a signal comes."""
        earlier = sys.gettrace()
        sys.settrace(self._begin)
        try:
            work()
        finally:
            sys.settrace(earlier)

    def _begin(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self._ours:
            self._ours[code] = code.co_filename.startswith(HOME) or code.co_filename.endswith(
                AROUND
            )
        return self._event(frame, event, argument) if self._ours[code] else None

    def _event(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.count += 1
        if self.count == self._at:
            sys.settrace(None)
            signal.raise_signal(self._number)
        if not self._at and frame.f_code.co_filename.endswith(STEPS):
            back = frame.f_back
            caller = (back.f_code, back.f_lineno) if back is not None else None
            self.steps[frame.f_code, frame.f_lineno, event, caller] = self.count
        return self._event


def interrupt(work: Callable[[], object], at: int) -> None:
    """Run the work, and stop it at that event; one that comes in a finalizer is lost."""
    with suppress(KeyboardInterrupt):
        Events(at).run(work)
