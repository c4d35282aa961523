"""A command runs in a copy of its process, so that a library may crash on a model, or not end.

The copy is made (fork) before anything large is imported. What is left of the command waits for
it; where the copy dies or takes too long, it removes the temporary folders and says so in one line.
Where no copy can be made, as on Windows or inside of another program, the command runs as it is.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

__all__ = ["allow", "doing", "in_a_copy", "is_a_copy", "remember", "scratch"]

GRACE = 5.0  # seconds to clean up in, once asked to stop
UNUSABLE, INTERRUPTED = 2, 130
TICK = 0.5

_told = -1  # in a copy: where it writes what the waiting process has to know


def remember(folder: str | Path) -> None:
    """Have a temporary folder removed also where this process dies."""
    _tell("remove", os.path.abspath(folder))  # noqa: PTH100


def allow(seconds: float) -> None:
    """How long this process may take from now on; 0 for as long as it wants."""
    _tell("allow", str(seconds))


def doing(step: str) -> None:
    """What this process does now, for the line that says that it crashed."""
    _tell("doing", step)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for all others, which is gone afterwards in any case."""
    import tempfile

    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        remember(folder)
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def in_a_copy(name: str, work: Callable[[], object], debug: bool = False) -> None:
    """Do the work, which ends in SystemExit, in a copy of this process and exit as it does.

    Returns without having done anything where no copy can be made. debug: show what libraries
    write to stderr while they crash.
    """
    if not _alone():
        return
    told, telling = os.pipe()
    waiting, living = os.pipe()
    child = os.fork()
    if child:
        os.close(telling)
        os.close(waiting)
        raise SystemExit(_Parent(name, child, told).wait())
    os.close(told)
    os.close(living)
    _be_the_copy(work, telling, waiting, debug)


def is_a_copy() -> bool:
    """Whether another process waits for this one and says how it was stopped."""
    return _told >= 0


def _alone() -> bool:
    """Whether a copy of this process can do all that this process does."""
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    own = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    return hasattr(os, "fork") and threads == 1 and own


def _be_the_copy(work: Callable[[], object], telling: int, waiting: int, debug: bool) -> None:
    global _told
    _told, code = telling, UNUSABLE
    try:
        threading.Thread(target=_follow, args=(waiting,), daemon=True).start()
        if not debug:
            _hide_what_libraries_say()
        _limit_memory()
        work()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else UNUSABLE
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _hide_what_libraries_say() -> None:
    """Assertions of C++ and the like; what Python prints still comes out."""
    stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = stderr


def _limit_memory() -> None:
    """No more than is free now: what a model asks for in vain must not end other programs (Linux).

    Files that are mapped do not count.
    """
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
        free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        limit = free["MemAvailable"] + free["SwapFree"]
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most == resource.RLIM_INFINITY or limit < most:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    except (ImportError, OSError, KeyError, ValueError, IndexError):
        pass


def _follow(waiting: int) -> None:
    """End when the process that waits is gone: nobody else would end this one."""
    os.read(waiting, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(INTERRUPTED)


def _tell(kind: str, text: str) -> None:
    if _told >= 0:
        with suppress(OSError):
            os.write(_told, os.fsencode(f"{kind} {text}\0"))


class _Parent:
    """The process that waits for a copy of itself."""

    def __init__(self, name: str, child: int, told: int) -> None:
        self.name = name
        self.child = child
        self.told = told
        self.folders: list[str] = []
        self.step = "starting"
        self.seconds = 0.0
        self.end: float | None = None  # by the monotonic clock
        self.kill: float | None = None
        self.stopped = False

    def wait(self) -> int:
        """The exit code."""
        from repfuse.cli.staging import STOPPING, handled

        with handled((signal.SIGINT, *STOPPING), self._forward):
            while self._hear():
                now = time.monotonic()
                if self.end is not None and now > self.end and self.kill is None:
                    self._signal(signal.SIGTERM)
                    self.kill = now + GRACE
                if self.kill is not None and now > self.kill:
                    self._signal(signal.SIGKILL)
            _, status = os.waitpid(self.child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                self._remove()
        ended = code < 0 or code == INTERRUPTED
        if ended and self.kill is not None and not self.stopped:
            return self._say(
                f"error: {self.step} takes more than {self.seconds:g} seconds: allow more with "
                "--timeout, or make the inputs smaller with --input",
                UNUSABLE,
            )
        if ended and (self.stopped or code == INTERRUPTED):
            return self._say("interrupted", INTERRUPTED)
        if code < 0:
            return self._say(f"error: {self._died(signal.Signals(-code))}", UNUSABLE)
        return code

    def _hear(self) -> bool:
        """Read what the copy tells; False once it has ended."""
        ready, _, _ = select.select([self.told], [], [], TICK)
        if not ready:
            return True
        data = os.read(self.told, 65536)
        for line in data.split(b"\0")[:-1]:
            kind, _, text = os.fsdecode(line).partition(" ")
            if kind == "remove":
                self.folders.append(text)
            elif kind == "doing":
                self.step = text
            elif kind == "allow":
                self.seconds = float(text)
                self.end = time.monotonic() + self.seconds if self.seconds else None
        return bool(data)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Ask the copy to stop, and when asked again, or after a while, end it."""
        if self.stopped:
            self._signal(signal.SIGKILL)
        else:
            self._signal(number)
            self.stopped, self.kill = True, time.monotonic() + GRACE

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.child, number)

    def _remove(self) -> None:
        import shutil

        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _died(self, number: signal.Signals) -> str:
        if number == signal.SIGKILL:
            return f"{self.step} was killed from outside, for lack of memory perhaps"
        return (
            f"{self.step} crashes a library ({number.name}): the model is damaged, or asks for "
            "what ONNX Runtime or onnx cannot do; export it again, or run it there by itself"
        )

    def _say(self, text: str, code: int) -> int:
        from repfuse.cli.running import complain

        complain(self.name, text)
        return code
