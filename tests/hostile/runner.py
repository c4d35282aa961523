"""Run the commands on hostile files and say what does not hold.

Demanded of every file: an exit code of 0, 1 or 2, and one line for a 2; no traceback; an end within
the limit; no read or write outside of the folders of the command line; IN as it was; OUT only when
it is valid and equal; nothing else left behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Place", "Run", "Runner"]

LIMIT = 60.0  # seconds for one file
TIMEOUT = 25  # seconds that the command is told to take at most
LONG = 1000  # characters of a line that one may have to read
OWN = b"the user's own"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Place:
    """The folders of one file: `inside` is that of IN, `out` that of OUT, `outside` is no one's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inside, self.out, self.outside, self.temp, self.cwd = (
            root / name for name in ("in", "out", "outside", "temp", "cwd")
        )

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for folder in (self.inside, self.out, self.outside, self.temp, self.cwd):
            folder.mkdir(parents=True)
        (self.outside / "secret.bin").write_bytes(b"\0" * 4096)

    @property
    def source(self) -> Path:
        return self.inside / "in.onnx"

    @property
    def result(self) -> Path:
        return self.out / "out.onnx"


@dataclass
class Run:
    """What a command did with a file. faults: what does not hold, none where all is well."""

    outcome: str
    faults: list[str] = field(default_factory=list)
    code: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0


class Runner:
    """Runs commands one after the other, in copies of a process of its own."""

    def __init__(self, limit: float = LIMIT, timeout: int = TIMEOUT) -> None:
        self.limit = limit
        self.timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def fuse(self, place: Place, arguments: Sequence[str] = (), **options: Any) -> Run:
        """repfuse-onnx IN OUT, or with other arguments, and the result held against IN."""
        whole = list(arguments) or [str(place.source), str(place.result)]
        return self.run(place, "repfuse-onnx", whole, **options)

    def check(self, place: Place, arguments: Sequence[str] = (), **options: Any) -> Run:
        """repfuse-check IN IN, or with other arguments."""
        whole = list(arguments) or [str(place.source)] * 2
        return self.run(place, "repfuse-check", whole, **options)

    def run(
        self, place: Place, command: str, arguments: list[str], *, plant: Sequence[str] = ()
    ) -> Run:
        result = _result(command, arguments)
        before = {folder: _listing(folder) for folder in (place.inside, place.out, place.outside)}
        texts = {name: str(place.root / name) for name in ("stdout", "stderr", "log")}
        for file in texts.values():
            Path(file).write_bytes(b"")
        task = {
            "command": command,
            "arguments": [*arguments, "--timeout", str(self.timeout)],
            "cwd": str(place.cwd),
            "temp": str(place.temp),
            "outside": str(place.outside),
            "reads": [str(place.inside), str(place.cwd)],
            "writes": [str(place.temp), *([str(result.parent)] if result else [])],
            "limit": self.limit,
            "plant": list(plant),
            **texts,
        }
        ended = self._ask(task)
        out, err, log = (Path(file).read_text("utf-8", "replace") for file in texts.values())
        run = Run("failure", [], ended["code"], out, err, ended["seconds"])
        run.faults = [
            *_ending(ended, out, err, command, self.limit),
            *sorted(set(log.splitlines())),
            *(["a library touches the folder outside"] if ended["outside"] else []),
            *_changes(place, before, run.code, result),
        ]
        if not run.code and result is not None and result.is_file():
            run.faults += self._compare(place, Path(arguments[0]), result)
        run.outcome = "failure" if run.faults else _outcome(run, command)
        return run

    def _compare(self, place: Place, source: Path, result: Path) -> list[str]:
        said = place.root / "said"
        said.write_text("")
        files = {"original": source, "result": result, "said": said}
        arguments = {name: str(path) for name, path in files.items()}
        ended = self._ask({"command": "compare", "arguments": arguments, "limit": self.limit})
        text = said.read_text("utf-8")
        if ended["code"] or text in ("", "does not run", "draws random numbers"):
            return []  # where the original crashes what runs it, nothing can be said
        return [f"unlike the original: {text}"]

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            settings["ORT_DISABLE_TELEMETRY"] = "1"  # as the commands have it
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.hostile.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).resolve().parents[2],
                env={**os.environ, **settings},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


def _result(command: str, arguments: list[str]) -> Path | None:
    """OUT."""
    if command != "repfuse-onnx" or arguments[1].startswith("-"):
        return None
    return Path(arguments[1])


def _listing(folder: Path) -> dict[str, Any]:
    """Every file of a folder: its content, or what it is instead of a file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            status = path.stat()
            large = status.st_size > 2**24
            found[name] = status.st_size if large else path.read_bytes()
        else:
            found[name] = path.lstat().st_mode
    return found


def _ending(ended: dict[str, Any], out: str, err: str, command: str, limit: float) -> list[str]:
    code, faults = ended["code"], []
    if ended["hung"]:
        return [f"it takes more than {limit:g} s"]
    if ended["left"]:
        faults.append("a process of it goes on")
    if code not in (0, 1, 2):
        faults.append(f"it ends with {code}: {err[-300:]!r}")
    if "Traceback" in out + err:
        faults.append(f"a traceback: {err[-300:]!r}")
    for words in ("a fault of repfuse itself", "internal error", "INTERNAL ERROR"):
        if words in out + err:
            faults.append(f"{words!r}: {next(x for x in (out + err).splitlines() if words in x)!r}")
    if code == 2:
        if err.count("\n") != 1 or not err.startswith(f"{command}: error: ") or out:
            faults.append(f"not one line: {err[-600:]!r} {out[-200:]!r}")
        if len(err) > LONG:
            faults.append(f"a line of {len(err)} characters: {err[:200]!r}")
    elif err and code in (0, 1):
        faults.append(f"on stderr: {err[-300:]!r}")
    if found := CONTROL.search(out + err):
        faults.append(f"a control character {found[0]!r} is printed")
    return faults


def _changes(place: Place, before: dict[Path, Any], code: int, result: Path | None) -> list[str]:
    faults, made = [], set[Path]()
    if result is not None and code == 0:
        made = {result, result.with_name(f"{result.name}.data")}
        if not result.is_file():
            faults.append("it says that it is done, and there is no OUT")
    for folder, was in before.items():
        now = _listing(folder)
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        faults += [f"{folder.name}/{n} is changed" for n in names if folder / n not in made]
    faults += [f"temp/{name} is left" for name in _listing(place.temp)]
    faults += [f"cwd/{name} is left" for name in _listing(place.cwd)]
    return faults


def _outcome(run: Run, command: str) -> str:
    if run.code == 2:
        for word, name in (("crashes", "crash"), ("--timeout", "timeout")):
            if word in run.stderr:
                return f"refused ({name})"
        return "refused"
    if run.code == 1:
        return "not equal"
    if command == "repfuse-check":
        return "equal"
    if "not understood" in run.stdout:
        return "equal, not understood"
    return "unfused, equal" if "nothing to merge" in run.stdout else "fused, equal"
