"""A full disk, a read-only folder, a signal, several processes: files are whole, or as before."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from repfuse.cli.running import write_text
from repfuse.cli.staging import staging
from repfuse.interruption import whole
from repfuse.timings import Timings
from tests.cli.test_onnx_command import block, run
from tests.interrupting import Events, interrupt

NOBODY = 65534
NAMES = ("o.onnx", "o.onnx.data", "report.json")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The model, in a folder of its own."""
    path = tmp_path / "given" / "in.onnx"
    path.parent.mkdir()
    onnx.save(block(16), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "o.onnx"


@contextmanager
def full_after(count: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_data(source: Path, out: Path) -> list[object]:
    return [source, out, "--save-external", "--report", out.with_name(NAMES[2]), "--no-check"]


def put_old(folder: Path) -> dict[str, bytes]:
    for name in NAMES:
        folder.joinpath(name).write_text(f"old {name}")
    return contents(folder)


def test_a_disk_that_is_full_at_any_byte(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *with_data(source, out)) == 0
    new = contents(out.parent)
    capsys.readouterr()
    sizes = sorted(len(content) for content in new.values())
    edges = {max(size + more, 0) for size in sizes for more in (-1, 0, 1)}
    limits = sorted({0, 1, 100, *range(0, sizes[-1], sizes[-1] // 8), *edges})
    codes = []
    for limit in limits:
        old = put_old(out.parent)
        with full_after(limit):
            code = run(monkeypatch, *with_data(source, out))
        now, (_, errors) = contents(out.parent), capsys.readouterr()
        codes.append(code)
        if code == 0:
            assert limit >= sizes[-1]
            assert now == new
            continue
        assert code == 2
        (line,) = errors.splitlines()
        assert line.startswith("repfuse-onnx: error: ")
        assert "cannot be written: File too large" in line
        models = {name: now.pop(name) for name in NAMES[:2]}
        assert models in [{name: known[name] for name in NAMES[:2]} for known in (old, new)]
        assert now == {NAMES[2]: old[NAMES[2]]}
    assert set(codes) == {0, 2}


def test_a_signal_at_any_moment(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(at: int = 0, number: int = signal.SIGINT) -> int:
        found = []
        events.append(Events(at, number))
        events[-1].run(lambda: found.append(run(monkeypatch, *with_data(source, out))))
        return found[0]

    events: list[Events] = []
    assert work() == 0
    new, draw = contents(out.parent), random.Random(0)
    steps = sorted(set(events[0].steps.values()))
    chosen = draw.sample(range(1, events[0].count * 98 // 100), 12) + draw.sample(steps[:-20], 12)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert gc.isenabled()
    for at in chosen:
        number = draw.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        old = put_old(out.parent)
        capsys.readouterr()
        code = work(at, number)
        assert gc.isenabled(), at
        now = contents(out.parent)
        if code == 0:  # it came in a finalizer, where Python goes on
            assert now == new
            continue
        assert code == 130, at
        assert capsys.readouterr().err.strip() == "repfuse-onnx: interrupted"
        models = {name: now[name] for name in NAMES[:2]}
        assert models in [{name: known[name] for name in NAMES[:2]} for known in (old, new)], at
        assert now.keys() == old.keys(), at
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_signal_at_any_moment_of_a_report(tmp_path: Path) -> None:
    @whole
    def work() -> None:
        write_text(path, "new")

    path, events, found = tmp_path / "report.json", Events(), set()
    events.run(work)
    for at in range(1, events.count + 1):
        path.write_text("old", "utf-8")
        interrupt(work, at)
        assert list(tmp_path.iterdir()) == [path], at
        found.add(path.read_text("utf-8"))
    assert found == {"old", "new"}


def command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "repfuse.cli.onnx", str(source), str(out), *options]


def test_several_processes_write_one_output(tmp_path: Path, source: Path, out: Path) -> None:
    """Models of two kinds; model and data at OUT are those of one of them."""
    other = tmp_path / "given" / "other.onnx"
    onnx.save(block(24), other)
    pairs = []
    for one in (source, other):
        subprocess.run(command(one, out, "--save-external", "--no-check", "-q"), check=True)
        pairs.append(contents(out.parent))
    processes = [
        subprocess.Popen(command(one, out, "--save-external", "--no-check", "-q"))
        for one in (source, other, source, other)
    ]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert contents(out.parent) in pairs


@pytest.mark.parametrize("before", [{}, {"a.data": b"old data", "a": b"old model"}])
def test_files_that_belong_together_come_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, bytes]
) -> None:
    model, data = tmp_path / "a", tmp_path / "a.data"
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    put = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if target == model:
            raise OSError(28, "No space left on device")
        return put(self, target)

    with staging(tmp_path) as stage:
        for final in (data, model):
            stage.path(final).write_text("new")
        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(OSError, match="No space left"):
            stage.publish(data, model)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_stream_is_told_by_the_exit_code(source: Path, out: Path, stream: str) -> None:
    if not Path("/dev/full").exists():
        assert sys.platform != "linux"
        return
    target = out if stream == "stdout" else out.with_name("no folder") / "o.onnx"
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run(  # type: ignore[call-overload]
            command(source, target, "--no-check"), text=True, check=False, **streams
        )
    assert done.returncode == 2
    if stream == "stdout":
        said = "repfuse-onnx: error: stdout cannot be written: No space left on device\n"
        assert done.stderr == said
        onnx.checker.check_model(onnx.load(out))


# All that is needed is imported before, for nobody may not be allowed to read it.
AS_NOBODY = f"""
import os, sys, threading
from contextlib import suppress
from repfuse.cli.onnx import main
# With a second thread the command runs in this process, where what it has imported stays.
threading.Thread(target=threading.Event().wait, daemon=True).start()
first, sys.argv[1:2] = sys.argv[1], []
if os.getuid() == 0:
    given = sys.argv
    sys.argv = [given[0], given[1], first, "-q"]
    with suppress(SystemExit):
        main()
    sys.argv = given
    os.setgid({NOBODY})
    os.setuid({NOBODY})
main()
"""


@pytest.fixture
def open_folders(tmp_path: Path) -> Iterator[None]:
    """Anybody may walk to the test's folder."""
    changed = [
        (folder, folder.stat().st_mode)
        for folder in (tmp_path, *tmp_path.parents)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1
    ]
    for folder, mode in changed:
        folder.chmod(mode | 0o111)
    yield
    for folder, mode in changed:
        folder.chmod(mode)


@pytest.mark.usefixtures("open_folders")
def test_folders_that_are_read_only(source: Path, out: Path) -> None:
    """By permissions, for a user whom they stop."""
    source.chmod(0o444)
    source.parent.chmod(0o555)
    given = contents(source.parent)

    def fuse(target: Path, *options: str) -> subprocess.CompletedProcess[str]:
        warm = out.parent.with_name("warm.onnx")
        files = [str(path) for path in (warm, source, target)]
        arguments = [sys.executable, "-c", AS_NOBODY, *files, *options]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    try:
        out.parent.chmod(0o777)
        done = fuse(out, "-q")
        assert (done.returncode, done.stderr) == (0, "")
        onnx.checker.check_model(onnx.load(out))
        before = contents(out.parent)
        out.parent.chmod(0o555)
        done = fuse(out)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "cannot be written" in line
        assert "read-only" in line
        assert contents(out.parent) == before
        done = fuse(source.parent / "report of.onnx")
        assert done.returncode == 2
        assert contents(source.parent) == given
    finally:
        source.parent.chmod(0o755)
        out.parent.chmod(0o755)


@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys"])
def test_folders_in_which_nothing_can_be_made(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    """For anybody, the owner of the machine included; where there are none, they are missing."""
    assert run(monkeypatch, source, Path(folder) / "o.onnx") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


def timed(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path) -> int:
    return run(monkeypatch, source, out, "--target", "measured", "--no-check", "-q")


HUGE = str(10**400)
DAMAGED: dict[str, Callable[[Path], object]] = {
    "whole numbers without end": lambda file: file.write_text(
        f'{{"1, a machine": {{"a": {HUGE}, "b": 1e400, "c": NaN}}}}'
    ),
    "cut short": lambda file: file.write_text('{"1, a machine": {"a": 1'),
    "deep": lambda file: file.write_text("[" * 100_000),
    "no text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda file: file.mkdir(),
    "of another shape": lambda file: file.write_text('{"1, a machine": [1], "x": {"y": "z"}}'),
    "nothing": lambda file: file.write_text(""),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_cache_breaks_nothing(tmp_path: Path, how: str) -> None:
    file = tmp_path / "timings.json"
    DAMAGED[how](file)
    found = Timings("a machine", file)
    found.put("work", 0.5)
    found.save()
    assert Timings("a machine", file).seconds in ({"work": 0.5}, {})
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_breaks_nothing(
    tmp_path: Path, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("/proc/self", str(source), str(tmp_path / "cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        assert timed(monkeypatch, source, out) == 0
    (tmp_path / "cache" / "repfuse" / "timings.json").unlink()
    with full_after(0):
        found = Timings("a machine", tmp_path / "cache" / "repfuse" / "timings.json")
        found.put("work", 0.5)
        found.save()
    assert not list((tmp_path / "cache" / "repfuse").iterdir())


def test_several_writers_of_the_cache_leave_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"

    def write(name: str) -> None:
        for count in range(20):
            found = Timings("a machine", file)
            found.put(f"{name} {count}", 0.5)
            found.save()
            json.loads(file.read_text())

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (times,) = json.loads(file.read_text()).values()
    assert times
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_models_of_the_tests_differ() -> None:
    first, second = block(16), block(24)
    assert first != second
