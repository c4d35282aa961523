"""Hostile files: what must hold for the commands whatever they are given.

`python -m tests.hostile --seconds 3600` looks for more of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hostile.corpus import CASES, ENDLESS
from tests.hostile.mutate import mutate
from tests.hostile.runner import OWN, Place, Run, Runner
from tests.hostile.seeds import SEEDS

SLICE = 25  # random files
PATIENCE = 2  # seconds for what has no end


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner(limit=300.0, timeout=240) as made:  # of a machine that does much else
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "place")
    made.clear()
    return made


def fine(run: Run) -> None:
    assert not run.faults, "\n".join([*run.faults, run.stderr, run.stdout[-1000:]])


# ---------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file(name: str, runner: Runner, place: Place) -> None:
    arguments = CASES[name](place) or ()
    timeout, runner.timeout = runner.timeout, PATIENCE if name in ENDLESS else runner.timeout
    try:
        run = runner.fuse(place, arguments)
        fine(run)
        assert (run.outcome == "refused (timeout)") == (name in ENDLESS)
        if not arguments:
            fine(runner.check(place))
    finally:
        runner.timeout = timeout


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_is_no_hostile_file(name: str, runner: Runner, place: Place) -> None:
    """What is damaged was valid: else its damage would show nothing."""
    SEEDS[name]().write(place.inside)
    for run, outcome in ((runner.fuse(place), "fused, equal"), (runner.check(place), "equal")):
        fine(run)
        assert run.outcome == outcome


@pytest.mark.parametrize("number", range(SLICE))
def test_a_damaged_file(number: int, runner: Runner, place: Place) -> None:
    fine(runner.run(place, *mutate(number, place)))


def test_the_same_seed_damages_in_the_same_way(place: Place) -> None:
    files = []
    for _ in range(2):
        place.clear()
        mutate(7, place)
        files.append({path.name: path.read_bytes() for path in place.inside.iterdir()})
    assert files[0] == files[1]


# --------------------------------------------------------------------------------- the runner

PLANTED: dict[str, tuple[str, str]] = {
    "a traceback": ("raise ValueError('planted')", "a traceback"),
    "an exit code": ("import os; os._exit(9)", "it ends with 9"),
    "a crash": ("import os; os.abort()", "it ends with -6"),
    "a hang": ("import time; time.sleep(99)", "it takes more than"),
    "a stray write": ("open(task['outside'] + '/stray', 'w').close()", "open writes"),
    "a stray read": ("open(task['outside'] + '/secret.bin').close()", "open reads"),
    "a read by a library": (
        "import ctypes; ctypes.CDLL(None).open((task['outside'] + '/secret.bin').encode(), 0)",
        "a library touches the folder outside",
    ),
    "a command": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
    "a temporary file": ("import tempfile; tempfile.mkstemp(dir=task['temp'])", "is left"),
    "a file beside IN": ("open(task['reads'][0] + '/new', 'w').close()", "in/new is changed"),
    "a change of IN": ("open(task['arguments'][0], 'ab').write(b'x')", "in/in.onnx is changed"),
    "a process that goes on": (
        "import os, time; os.fork() or (os.close(1), os.close(2), time.sleep(99))",
        "a process of it goes on",
    ),
    "noise": ("import sys; print('noise', file=sys.stderr)", "on stderr"),
    "a terminal code": ("print('\\x1b[2J')", "a control character"),
    "another result": (
        "import onnx\n"
        "from repfuse.cli import fusing\n"
        "real = fusing.write_model\n"
        "def spoil(patched, path, *rest):\n"
        "    real(patched, path, *rest)\n"
        "    model = onnx.load(path)\n"
        "    weight = model.graph.initializer[0]\n"
        "    values = onnx.numpy_helper.to_array(weight) * 2\n"
        "    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))\n"
        "    onnx.save(model, path)\n"
        "fusing.write_model = spoil\n",
        "unlike the original",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_runner_sees(name: str, place: Place, runner: Runner) -> None:
    code, words = PLANTED[name]
    SEEDS["branches"]().write(place.inside)
    limit, runner.limit = runner.limit, 5.0 if name == "a hang" else runner.limit
    try:
        arguments = [str(place.source), str(place.result), "--no-check"]
        run = runner.fuse(place, arguments, plant=[code])
    finally:
        runner.limit = limit
    assert run.outcome == "failure"
    assert any(words in fault for fault in run.faults), run.faults


def test_the_runner_sees_that_out_was_replaced_for_nothing(place: Place, runner: Runner) -> None:
    place.source.write_bytes(b"no model")
    place.result.write_bytes(OWN)
    code = "open(task['arguments'][1], 'w').close()"
    run = runner.fuse(place, plant=[code])
    assert "out/out.onnx is changed" in run.faults


# ------------------------------------------------------------------------ whole processes


def command(name: str, *arguments: object, **options: object) -> list[str]:
    script = f"from repfuse.cli.{name} import main; main()"
    return [sys.executable, "-c", script, *map(str, arguments)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a crash of ONNX Runtime", "crashes a library (SIGABRT)"),
        ("external: above the folder", "are outside of the model's folder"),
        ("cut at 40 percent", "is cut short or damaged"),
    ],
)
@pytest.mark.parametrize("tool", ["onnx", "check"])
def test_a_process_ends_with_one_line(name: str, words: str, tool: str, place: Place) -> None:
    CASES[name](place)
    other = place.result if tool == "onnx" else place.source
    done = subprocess.run(
        command(tool, place.source, other),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(place.temp)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"repfuse-{tool}: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not [*place.out.iterdir(), *place.temp.iterdir()]


def test_what_has_no_end_is_given_up(place: Place) -> None:
    CASES["a loop without an end"](place)
    done = subprocess.run(
        command("onnx", place.source, place.result, "--timeout", 1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "takes more than 1 seconds: allow more with --timeout" in done.stderr
    assert not [*place.out.iterdir()]


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_busy_in_a_library_can_be_stopped(
    how: signal.Signals, place: Place
) -> None:
    """Python hears of a signal only when the library returns, which it does not here."""
    CASES["a loop without an end"](place)
    whole = command("onnx", place.source, place.result)
    with subprocess.Popen(whole, stderr=subprocess.PIPE, text=True) as process:
        _until(lambda: any(place.out.glob(".repfuse-*/out.onnx")))
        process.send_signal(how)
        if how == signal.SIGINT:
            process.send_signal(how)
        assert process.stderr is not None
        said = process.stderr.read()  # until the last process that could write has ended
    if how == signal.SIGKILL:
        return
    assert (process.returncode, said) == (130, "repfuse-onnx: interrupted\n")
    assert not [*place.out.iterdir()]


def _until(happens: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
