"""repfuse-check as a process: exit codes, what it prints, reports, and what it never imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from repfuse.cli.running import check_writable, guarded, write_text
from repfuse.cli.staging import staging, terminable
from repfuse.errors import RepfuseError
from tests.frontends.onnx.models import model_of, network, node

Check = Callable[..., "subprocess.CompletedProcess[str]"]

# As the installed script does it, with torch forbidden.
PROGRAM = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Forbidden())
from repfuse.cli.check import main
main()
"""


def command(*forbidden: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(forbidden=forbidden or ("torch",))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    onnx.save(network(), made / "reference.onnx")
    onnx.save(network(folded=True), made / "folded.onnx")
    onnx.save(network(folded=True, mistake="scale"), made / "wrong.onnx")
    (made / "text.onnx").write_text("no model")
    # Links: what a fault replaced would be these, and not a device of the machine.
    (made / "null").symlink_to("/dev/null")
    (made / "stdout").symlink_to("/proc/self/fd/1")
    return made


@pytest.fixture
def check(folder: Path) -> Check:
    def run(*arguments: str, forbidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        whole = [*command(*forbidden), *arguments]
        return subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)

    return run


# -------------------------------------------------------------------------------------- exit codes


def test_equal_files(check: Check) -> None:
    done = check("reference.onnx", "folded.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("│ ok") == 3
    assert "draw 0: r2" in done.stdout and "1x8x33x46" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("equal: at most ")
    again = check("reference.onnx", "reference.onnx", "-q")
    assert len(again.stdout.splitlines()) == 1


def test_files_that_differ(check: Check) -> None:
    done = check("reference.onnx", "wrong.onnx", "--draws", "2")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("FAILS: beyond the tolerance") == 2
    assert done.stdout.splitlines()[-1].startswith("NOT EQUAL: 2 of 2 comparisons failed (draw ")
    quiet = check("reference.onnx", "wrong.onnx", "-q")
    assert quiet.returncode == 1
    assert len(quiet.stdout.splitlines()) == 1


def test_a_reader_that_stops_changes_no_exit_code(folder: Path) -> None:
    process = subprocess.Popen(
        [*command(), "reference.onnx", "folded.onnx"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_another_interface(check: Check, folder: Path) -> None:
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "fixed.onnx")
    done = check("reference.onnx", "fixed.onnx")
    assert done.returncode == 1
    assert "Nx3xHxW in the reference, 1x3xHxW in the candidate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'REFERENCE' (see repfuse-check --help)"),
        (["reference.onnx"], "Missing argument 'CANDIDATE'"),
        (["reference.onnx", "folded.onnx", "--tolerance", "1"], "No such option"),
        (["reference.onnx", "folded.onnx", "--draws", "0"], "Invalid value for '--draws'"),
        (["none.onnx", "folded.onnx"], "none.onnx does not exist"),
        (["reference.onnx", "text.onnx"], "text.onnx is not an ONNX file"),
        (["reference.onnx", "."], ". is a folder: name the .onnx file in it"),
        (["reference.onnx", "folded.onnx", "--input", "x=3"], "is Nx3xHxW, 3 was given"),
        (["reference.onnx", "folded.onnx", "--inputs", "none.npz"], "none.npz does not exist"),
        (["reference.onnx", "folded.onnx", "--json", "no/x.json"], "there is no folder no"),
        (["reference.onnx", "folded.onnx", "--junit", "."], ". is a folder"),
        (["reference.onnx", "folded.onnx", "--json", "null"], "null is no regular file"),
        (["reference.onnx", "folded.onnx", "--json", "stdout"], "stdout is no regular file"),
        (["reference.onnx", "folded.onnx", "--json", "a" * 300], "cannot be written: File name"),
        (["reference.onnx", "a" * 300], "cannot be read: File name too long"),
        (["a" * 300, "folded.onnx", "--json", "text.onnx"], "cannot be read: File name too long"),
        (["reference.onnx", "\udcff.onnx"], "is no name in UTF-8: rename the file"),
        (["reference.onnx", "folded.onnx", "--json", "\udcff"], "is no name in UTF-8: choose"),
        (
            ["reference.onnx", "folded.onnx", "--json", "new", "--junit", "./new"],
            "--json and --junit name the same file new",
        ),
        (["reference.onnx", "folded.onnx", "--factor", "nan"], "'--factor': nan is not a finite"),
        (["reference.onnx", "folded.onnx", "--factor", "inf"], "'--factor': inf is not a finite"),
        (["reference.onnx", "folded.onnx", "--json", "folded.onnx"], "would be overwritten"),
        (
            ["reference.onnx", "folded.onnx", "--input", "1x3x8x8", "--inputs", "x.npz"],
            "--input and --inputs exclude each other",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(check: Check, arguments: list[str], message: str) -> None:
    done = check(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("repfuse-check: error: ")
    assert message in line


def test_debug_shows_the_traceback(check: Check) -> None:
    done = check("none.onnx", "folded.onnx", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "repfuse-check: error: none.onnx does not exist"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(folder: Path, tmp_path: Path, how: signal.Signals) -> None:
    """As a terminal does it with Ctrl-C or when it is closed, while the models run."""
    files = ["reference.onnx", "folded.onnx", "--json", "slow.json"]
    whole = [*command(), *files, "--draws", "5000", "--input", "1x3x64x64"]
    process = subprocess.Popen(
        whole,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 30.0
    while not list(tmp_path.glob("repfuse-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "repfuse-check: interrupted\n"
    assert not (folder / "slow.json").exists()
    assert not list(tmp_path.glob("repfuse-*"))


def test_signals_wait_while_files_are_put_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        return put(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(KeyboardInterrupt), terminable(), staging(tmp_path) as stage:
        for final in (first, second):
            stage.path(final).write_text("new")
        stage.publish(first, second)
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ------------------------------------------------------------------------------------------- inputs


def test_shapes_and_arrays(check: Check, folder: Path) -> None:
    images = np.ones((2, 3, 8, 6), np.float32)
    np.savez(folder / "images.npz", x=images)
    for arguments in (
        ["--input", "x=2x3x8x6"],
        ["--input", "2x3x8x6", "--draws", "1"],
        ["--inputs", "images.npz"],
    ):
        done = check("reference.onnx", "folded.onnx", *arguments, "--seed", "3")
        assert done.returncode == 0, done.stderr
        assert "2x8x8x6" in done.stdout


# ------------------------------------------------------------------------------------------ reports


def test_json(check: Check, folder: Path) -> None:
    for candidate, passed in (("folded.onnx", True), ("wrong.onnx", False)):
        done = check("reference.onnx", candidate, "--json", "report.json", "--seed", "5")
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert report["passed"] is passed
        assert report["verdict"] == done.stdout.splitlines()[-1]
        assert (report["reference"], report["candidate"]) == ("reference.onnx", candidate)
        assert report["seed"] == 5
        assert [draw["x"][0] for draw in report["draws"]] == [1, 2, 3]
        assert [output["passed"] for output in report["outputs"]] == [passed] * 3
        assert report["versions"]["engine"].startswith("ONNX Runtime")


def test_junit(check: Check, folder: Path) -> None:
    for candidate, failures in (("folded.onnx", 0), ("wrong.onnx", 3)):
        check("reference.onnx", candidate, "--junit", "report.xml")
        root = ElementTree.parse(folder / "report.xml").getroot()
        (suite,) = root.findall("testsuite")
        cases = suite.findall("testcase")
        assert [case.get("name") for case in cases] == [f"draw {i}: r2" for i in range(3)]
        assert {case.get("classname") for case in cases} == {candidate}
        assert len(suite.findall("testcase/failure")) == failures
        for element in (root, suite):
            assert (element.get("tests"), element.get("failures")) == ("3", str(failures))
    message = suite.find("testcase/failure")
    assert message is not None and "is beyond the tolerance of" in message.get("message", "")


def test_names_that_xml_cannot_hold(check: Check, folder: Path) -> None:
    model = model_of([node("Relu", "x", "y")], {"x": [2]}, {'y<&"\x01é': None})
    model.graph.node[0].output[0] = model.graph.output[0].name
    onnx.save(model, folder / "odd.onnx")
    assert check("odd.onnx", "odd.onnx", "--junit", "odd.xml", "--json", "odd.json").returncode == 0
    case = ElementTree.parse(folder / "odd.xml").getroot().find("testsuite/testcase")
    assert case is not None and case.get("name", "").endswith('y<&"?é')
    assert "\x01" in json.loads((folder / "odd.json").read_text())["outputs"][0]["name"]


def test_reports_replace_no_weights(check: Check, folder: Path) -> None:
    for name in ("own", "other"):
        onnx.save(
            network(),
            folder / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.bin",
            size_threshold=0,
        )
    for option, name in (("--json", "own"), ("--junit", "other")):
        weights = folder / f"{name}.bin"
        before = weights.read_bytes()
        done = check("own.onnx", "other.onnx", option, f"./{name}.bin")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{name}.bin holds weights of {name}.onnx: name another file" in done.stderr
        assert weights.read_bytes() == before
    (folder / "again.json").write_text("old")
    assert check("own.onnx", "other.onnx", "--json", "again.json").returncode == 0


def test_a_report_is_not_what_stdout_goes_to(folder: Path) -> None:
    with (folder / "log.txt").open("w") as log:
        whole = [*command(), "reference.onnx", "folded.onnx", "--json", "log.txt"]
        done = subprocess.run(whole, cwd=folder, stdout=log, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"log.txt is where the output of the command goes" in done.stderr


def test_no_report_of_what_cannot_be_used(check: Check, folder: Path) -> None:
    assert check("reference.onnx", "text.onnx", "--json", "bad.json").returncode == 2
    assert not (folder / "bad.json").exists()


# ------------------------------------------------------------------------- what it costs and needs


def test_help_is_quick_and_teaches() -> None:
    before = os.times()
    done = subprocess.run([*command(), "--help"], capture_output=True, text=True, check=True)
    after = os.times()
    for text in ("Examples:", "--input images=1x3x640x640", "Exit codes:", "1  not equal"):
        assert text in done.stdout
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 0.4
    frameworks = ("torch", "onnx", "onnxruntime", "numpy", "rich")
    lean = subprocess.run([*command(*frameworks), "--help"], capture_output=True, check=False)
    assert lean.returncode == 0, lean.stderr


@pytest.mark.parametrize("missing", ["click", "onnx", "onnxruntime", "rich"])
def test_what_is_not_installed_is_said(check: Check, missing: str) -> None:
    done = check("reference.onnx", "folded.onnx", forbidden=(missing,))
    assert done.returncode == 2
    advice = f'error: {missing} is not installed: pip install "repfuse[onnx]"\n'
    assert done.stderr == f"repfuse-check: {advice}"


# ----------------------------------------------------------------------------- the shared functions


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    write_text(path, "first\n")
    assert path.read_text() == "first\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "second \ud800")
    assert path.read_text() == "first\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(RepfuseError, match="cannot be written: No such file"):
        write_text(tmp_path / "none" / "report.txt", "")


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("old")
    check_writable(tmp_path / "there.txt", keep=[tmp_path / "other.txt"])
    with pytest.raises(RepfuseError, match="would be overwritten"):
        check_writable(tmp_path / "there.txt", keep=[tmp_path / "." / "there.txt"])
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    for name, message in (
        ("fifo", "fifo is no regular file"),
        ("link", "link is no regular file"),
        ("a" * 300, "File name too long"),
        ("a\0b", "null"),
        ("\udcff", "is no name in UTF-8"),
        ("there.txt/x", "there is no folder"),
    ):
        with pytest.raises(RepfuseError, match=message):
            check_writable(tmp_path / name)
    write_text(tmp_path / ("a" * 250), "long")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RepfuseError("a file\nis bad"), 2, "error: a file is bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: there is not enough memory for these models"),
        (ValueError("x"), 2, "error: a fault of repfuse itself, shown by --debug (ValueError: x)"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised, guarded("name"):
        raise error
    assert raised.value.code == code
    assert capsys.readouterr().err == f"name: {line}\n"
