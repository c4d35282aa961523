"""Measured times of operators: in memory, and in a file of the user's cache folder.

The file is $XDG_CACHE_HOME/repfuse/timings.json, ~/.cache/repfuse/timings.json where that is not
set, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows. A time holds for one machine: processor,
threads, and the version of what ran. A file that cannot be read or written is as none.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from repfuse.files import write_whole

__all__ = ["Timings", "cache_file", "is_time", "processor"]

SHORTEST, LONGEST = 1e-9, 1e5  # seconds that anything may take
FORMAT = "1"  # of the file, and of how times are taken


def cache_file() -> Path | None:
    """Where times are kept; None where there is no home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):
        if Path(given).is_absolute():
            folder = Path(given)
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Caches"
        elif sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home())
        else:
            folder = Path.home() / ".cache"
        return folder / "repfuse" / "timings.json"
    return None


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Timings:
    """Seconds by the text of an operator, for one machine."""

    def __init__(self, machine: str, path: Path | None) -> None:
        self.machine = f"{FORMAT}, {machine}"
        self.path = path
        self.seconds = self._read().get(self.machine, {})
        self._new: dict[str, float] = {}

    def get(self, work: str) -> float | None:
        return self.seconds.get(work)

    def put(self, work: str, seconds: float) -> None:
        self.seconds[work] = self._new[work] = seconds

    def _read(self) -> dict[str, dict[str, float]]:
        """All machines of the file; what is damaged in it is left out."""
        if self.path is None:
            return {}
        try:
            content: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        found: dict[str, dict[str, float]] = {}
        for machine, times in content.items() if isinstance(content, dict) else ():
            if isinstance(times, dict):
                found[machine] = {
                    work: float(time) for work, time in times.items() if is_time(time)
                }
        return found

    def save(self) -> None:
        """Add the new times to the file, which is replaced whole: others may read or write it."""
        if self.path is None or not self._new:
            return
        content = self._read()
        content[self.machine] = content.get(self.machine, {}) | self._new
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=0, sort_keys=True)
            write_whole(self.path, text, ".timings-")
            self._new = {}


def is_time(value: object) -> bool:
    """Whether a value is the seconds of an operator."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and SHORTEST < value < LONGEST  # type: ignore[operator]
