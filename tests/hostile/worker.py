"""One process that has everything imported and runs each command in a copy of itself (fork).

It reads one task a line from stdin and answers with one line, both JSON. What a command does to
files is watched: Python's own calls by an audit hook, what libraries do to the folder outside by
inotify. Only started by `runner`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.hostile import independent

IMPORTED = (
    "onnx.reference",
    "repfuse.cli.fusing",
    "repfuse.cli.onnx",
    "repfuse.cli.reports",
    "repfuse.frontends.onnx.verify",
    "rich.progress",
    "rich.table",
)
MEMORY = 6 * 2**30  # bytes of address space for a command
READ_BY_ALL = ("/proc/", "/sys/", "/etc/", "/dev/null", "/dev/urandom")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events by what they do to the paths among their first arguments.
WRITES = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2}
WRITES |= {"os.chmod": 1, "os.truncate": 1, "os.utime": 1, "shutil.rmtree": 1}
READS = {"os.listdir": 1, "os.scandir": 1}
NEVER = ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "socket.connect")
# Of <sys/inotify.h>: access, modify, attrib, open, moved, create, delete.
WATCHED = 0x2 | 0x4 | 0x1 | 0x20 | 0xC0 | 0x100 | 0x200


class Watch:
    """The audit hook: notes reads and writes outside of the folders that are allowed."""

    def __init__(self) -> None:
        self.log = -1
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        here = [str(Path(__file__).resolve().parents[2]), sys.prefix, sys.base_prefix]
        self.code = tuple(os.path.realpath(path) + "/" for path in (*here, *sys.path) if path)
        sys.addaudithook(self.hear)

    def start(self, log: str, reads: list[str], writes: list[str]) -> None:
        self.reads = tuple(os.path.realpath(path) + "/" for path in (*reads, *writes))
        self.writes = tuple(os.path.realpath(path) + "/" for path in writes)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hear(self, event: str, values: tuple[Any, ...]) -> None:
        if self.log < 0:
            return
        if event == "open":
            path, _, flags = values
            self._judge(event, path, bool((flags or 0) & WRITING))
        elif event == "os.symlink":
            self._judge(event, values[1], True, values[2])
        elif event in WRITES or event in READS:
            count = WRITES.get(event) or READS[event]
            for place, path in enumerate(values[:count]):
                folder = values[2 + place] if event in ("os.rename", "os.link") else values[-1]
                self._judge(event, path, event in WRITES, folder)
        elif event in NEVER:
            self._note(f"{event} {values[:2]}")

    def _judge(self, event: str, path: Any, writes: bool, folder: Any = -1) -> None:
        if isinstance(path, int) or path is None:
            return
        log, self.log = self.log, -1  # what is done here is not heard
        base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        whole = os.path.join(base, os.fsdecode(path))  # noqa: PTH118
        if event == "open" or event in READS:
            place = os.path.realpath(whole) + "/"
        else:  # a link itself is what changes
            parent, name = os.path.split(whole.rstrip("/"))
            place = f"{os.path.realpath(parent)}/{name}/"
        self.log = log
        allowed = self.writes if writes else (*self.reads, *self.code, *READ_BY_ALL)
        if place.rstrip("/") != "/dev/null" and not place.startswith(allowed):
            self._note(f"{event} {'writes' if writes else 'reads'} {place[:-1]}")

    def _note(self, text: str) -> None:
        os.write(self.log, (ascii(text)[1:-1] + "\n").encode())


class Outside:
    """Whether anything, library or not, touches a folder or what is in it (Linux)."""

    def __init__(self, folder: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.handle < 0 or libc.inotify_add_watch(self.handle, folder.encode(), WATCHED) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def touched(self) -> bool:
        try:
            return bool(os.read(self.handle, 65536))
        except BlockingIOError:
            return False
        finally:
            os.close(self.handle)


def _command(task: dict[str, Any], watch: Watch) -> None:
    """Be the command; only called in a copy of the process."""
    from repfuse.cli import check, onnx

    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(task["cwd"])
    os.environ["TMPDIR"] = task["temp"]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.argv = [task["command"], *task["arguments"]]
    watch.start(task["log"], task["reads"], task["writes"])
    for planted in task.get("plant", ()):  # a fault of the runner's own tests
        exec(planted, {"task": task})
    (onnx if task["command"] == "repfuse-onnx" else check).main()


def _copied(limit: float, work: Any) -> dict[str, Any]:
    """Run something in a copy of this process: how it ended, and in how many seconds."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            work()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 71
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        left = start + limit - time.monotonic()
        if left <= 0:
            break
        signal.sigtimedwait([signal.SIGCHLD], min(left, 1.0))
    found: dict[str, Any] = {"hung": not ended, "seconds": time.monotonic() - start}
    # Also what a command that ended has left running.
    try:
        os.killpg(child, signal.SIGKILL)
        found["left"] = bool(ended)
    except (ProcessLookupError, PermissionError):
        found["left"] = False
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    found["code"] = os.waitstatus_to_exitcode(status)
    return found


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)

    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    watch = Watch()
    for line in lines:
        task = json.loads(line)
        if task["command"] == "compare":
            found = _copied(task["limit"], lambda t=task: independent.compare(**t["arguments"]))
        else:
            outside = Outside(task["outside"])
            found = _copied(task["limit"], lambda t=task: _command(t, watch))
            found["outside"] = outside.touched()
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
