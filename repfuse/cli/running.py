"""What the commands share: one line for an error, exit codes, progress, files written whole.

Exit codes are 0 for done (and equal), 1 for not equal, 2 for what cannot be used, which includes
faults of repfuse itself, since 1 has a meaning of its own, and 130 for Ctrl-C. The traceback of an
error is shown with --debug only.
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from repfuse.cli.isolation import in_a_copy, is_a_copy
from repfuse.errors import RepfuseError
from repfuse.files import write_whole
from repfuse.interruption import interruption, whole

if TYPE_CHECKING:
    import click

__all__ = [
    "EQUAL",
    "NOT_EQUAL",
    "check_writable",
    "complain",
    "guarded",
    "printable",
    "printing",
    "progress",
    "run",
    "same_file",
    "shown",
    "timeout_option",
    "write_text",
]

EQUAL, NOT_EQUAL, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
LONGEST = 800  # characters of a line that says what is wrong
TIMEOUT = 3600  # seconds, unless --timeout says how many


def run(
    name: str,
    build: Callable[[], click.Command],
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> NoReturn:
    """Run a command on the arguments of the process and exit with its code.

    build: makes the command; imports click, which may not be installed. Its callback returns the
    exit code. around: the context it runs in, and is built in. Errors, also of usage, are one
    line, as `guarded` says.
    """
    debug = "--debug" in sys.argv[1:]
    # ONNX Runtime would send what it runs to its makers, and leave a file in the temporary folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

    @whole
    def command() -> object:
        with around(), warnings.catch_warnings():
            if not debug:  # of NumPy, on what is in a model; the verdict is what counts
                warnings.simplefilter("ignore")
            return build().main(prog_name=name, standalone_mode=False)

    def work() -> NoReturn:
        with guarded(name, debug):
            from repfuse.cli.staging import terminable

            with terminable():
                code = command()
            raise SystemExit(code if isinstance(code, int) else EQUAL)
        raise AssertionError("guarded always exits")

    in_a_copy(name, work, debug)
    work()


def timeout_option() -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The option --timeout, which all commands have."""
    import click

    return click.option(
        "--timeout",
        type=click.FloatRange(0),
        default=TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="Give up after that time; 0 for never.",
    )


def complain(name: str, text: str) -> None:
    """Print one line on stderr, whatever a file has put into it."""
    line = printable(" ".join(text.split()))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
    with suppress(OSError, ValueError):  # full or closed: the exit code says it
        print(f"{name}: {line}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A text without what would steer a terminal, such as an escape code in the name of a node."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Lines as they go to stdout: on a terminal with the codes of their colours, else with none."""
    return text if sys.stdout.isatty() else "\n".join(map(printable, text.split("\n")))


@contextmanager
def guarded(name: str, debug: bool = False) -> Iterator[None]:
    """Turn an error in the block into one line on stderr, `name: error: ...`, and an exit code."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        text, code = _explain(name, error)
        if debug:
            import traceback

            traceback.print_exc()
        if code != INTERRUPTED or not is_a_copy():  # the process that waits says why
            complain(name, text)
        raise SystemExit(code) from None


def _explain(name: str, error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    click: Any = sys.modules.get("click")
    stopped = isinstance(interruption(error), KeyboardInterrupt)
    if stopped or (click and isinstance(error, click.Abort)):
        return "interrupted", INTERRUPTED
    if isinstance(error, RepfuseError):
        return f"error: {error}", UNUSABLE
    if click and isinstance(error, click.UsageError):
        return f"error: {error.format_message().rstrip('.')} (see {name} --help)", UNUSABLE
    if click and isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", UNUSABLE
    if isinstance(error, ModuleNotFoundError):
        return f'error: {error.name} is not installed: pip install "repfuse[onnx]"', UNUSABLE
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename} cannot be used: " if error.filename else ""
        return f"error: {where}{error.strerror}", UNUSABLE
    if isinstance(error, MemoryError):
        return "error: there is not enough memory for these models", UNUSABLE
    what = f"{type(error).__name__}: {error}"
    return f"error: a fault of repfuse itself, shown by --debug ({what})", UNUSABLE


@contextmanager
def printing() -> Iterator[None]:
    """Around what writes to stdout; that whoever read it has stopped, as in `| head`, changes no
    exit code.

    Raises RepfuseError where it cannot be written, as to a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # What is left of the text would fail again, with a traceback, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            reason = error.strerror or error
            raise RepfuseError(f"stdout cannot be written: {reason}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all: beside its place, then renamed.

    Raises RepfuseError where it cannot be written; what was there stays then.
    """
    try:
        write_whole(Path(path), text)
    except OSError as error:
        raise RepfuseError(f"{path} cannot be written: {error.strerror or error}") from error


def check_writable(path: str | Path, keep: Iterable[str | Path] = ()) -> None:
    """Raise RepfuseError where a file cannot be written, before work is done for it.

    keep: files that are read, which must not be written over.
    """
    path = Path(path)
    there = _status(path)
    if there is not None and any(same_file(path, one) for one in keep):
        raise RepfuseError(f"{path} is read as well: it would be overwritten")
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise RepfuseError(f"{path} is a folder: name a file in it")
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise RepfuseError(f"{path} is no regular file: name one, which is written whole")
    if there is not None and any(os.path.samestat(there, one) for one in _streams()):
        raise RepfuseError(f"{path} is where the output of the command goes: name another file")
    if not path.parent.is_dir():
        raise RepfuseError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise RepfuseError(f"{path} cannot be written: {path.parent} is read-only")


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file, also where there is none yet."""
    one, other = Path(one), Path(other)
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def _status(path: Path) -> os.stat_result | None:
    """What is at a path, following links, or None. Raises RepfuseError where no file can be."""
    try:
        str(path).encode()
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeError:
        raise RepfuseError(f"{str(path)!a} is no name in UTF-8: choose another") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RepfuseError(f"{path} cannot be written: {reason}") from error


def _streams() -> list[os.stat_result]:
    """What stdout and stderr lead to."""
    found = []
    for number in (1, 2):
        with suppress(OSError):
            found.append(os.fstat(number))
    return found


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[int, int, str], None] | None]:
    """A function to tell (steps done, of how many, what next): a bar on stderr, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, steps, text: bar.update(
            task, completed=done, total=steps, description=text
        )
