"""`repfuse-check REFERENCE CANDIDATE`: are two ONNX files equal as functions?

What it needs is imported once there is something to do, so that --help is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from repfuse.cli.running import (
    EQUAL,
    NOT_EQUAL,
    check_writable,
    guarded,
    printable,
    printing,
    progress,
    run,
    same_file,
    shown,
    timeout_option,
    write_text,
)
from repfuse.errors import RepfuseError

if TYPE_CHECKING:
    import click
    from rich.table import Table

    from repfuse.comparison import Comparison, OutputError

__all__ = ["main"]

NAME = "repfuse-check"
WIDTH = 120  # columns of a table that goes into a file or a log

HELP = """Are the ONNX files REFERENCE and CANDIDATE equal as functions?

Both run on the same seeded random inputs in ONNX Runtime, with its optimizations off and on.
CANDIDATE may be as far from REFERENCE as rounding moves REFERENCE itself, times a factor. That is
measured, by running REFERENCE optimized, and with weights and inputs moved by an ulp at random, so
that there is no tolerance to choose. Inputs and outputs must have the same names, order, types and
dimensions.

Dynamic dimensions take several sizes, odd and even, at which REFERENCE runs. Where none is found,
or where only some make sense, give the shapes with --input, or arrays with --inputs.

\b
Examples:
  repfuse-check model.onnx fused.onnx
  repfuse-check model.onnx fused.onnx --input images=1x3x640x640
  repfuse-check model.onnx fused.onnx --input ids=1x128 --input mask=1x128
  repfuse-check model.onnx fused.onnx --inputs samples.npz
  repfuse-check model.onnx fused.onnx --junit report.xml --json report.json

\b
Exit codes:
  0  equal
  1  not equal
  2  a file, an input or an option cannot be used
"""


def main() -> NoReturn:
    """The command of that name."""
    run(NAME, _command)


def _command() -> click.Command:
    import click

    from repfuse import __version__

    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    file = click.Path(path_type=Path)

    @click.command(NAME, help=HELP, context_settings=settings)
    @click.argument("reference")
    @click.argument("candidate")
    @click.option(
        "--input",
        "shapes",
        multiple=True,
        metavar="NAME=SHAPE",
        help="Shape of an input, as image=1x3x224x224 or, for the only input, 1x3x224x224. "
        "May be repeated.",
    )
    @click.option(
        "--inputs", type=file, metavar="FILE.npz", help="Arrays by input name, not random ones."
    )
    @click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
    @click.option(
        "--draws",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="How many random inputs.",
    )
    @click.option(
        "--factor",
        type=click.FloatRange(0.0, min_open=True),
        callback=_finite,
        default=4.0,
        show_default=True,
        help="How many times REFERENCE's own rounding error is allowed.",
    )
    @click.option(
        "--json", "json_file", type=file, metavar="FILE", help="Write the result as JSON."
    )
    @click.option("--junit", "junit_file", type=file, metavar="FILE", help="... as JUnit XML.")
    @timeout_option()
    @click.option("-q", "--quiet", is_flag=True, help="Print the verdict only.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.version_option(__version__, "-V", "--version")
    def command(debug: bool, **options: Any) -> int:
        with guarded(NAME, debug):  # here as well: click would print an empty line for Ctrl-C
            return _check(**options)

    return command


def _check(
    *,
    reference: str,
    candidate: str,
    shapes: tuple[str, ...],
    inputs: Path | None,
    seed: int,
    draws: int,
    factor: float,
    json_file: Path | None,
    junit_file: Path | None,
    timeout: float,
    quiet: bool,
) -> int:
    if shapes and inputs:
        raise RepfuseError("--input and --inputs exclude each other: arrays have shapes already")
    _check_reports((json_file, junit_file), (reference, candidate), inputs)

    from repfuse.cli import isolation
    from repfuse.cli.reports import json_report, junit_report
    from repfuse.frontends.onnx.inputs import parse_shapes, read_npz
    from repfuse.frontends.onnx.verify import measure

    parsed = parse_shapes(shapes)
    arrays = None if inputs is None else read_npz(inputs)
    isolation.allow(timeout)
    isolation.doing(f"comparing {reference} and {candidate}")
    with progress(quiet) as tell, isolation.scratch():
        found = measure(
            reference,
            candidate,
            arrays,
            shapes=parsed,
            seed=seed,
            draws=draws,
            factor=factor,
            progress=tell,
        )
    comparison = found.comparison
    verdict = _verdict(comparison)
    facts = {
        "verdict": verdict,
        "reference": reference,
        "candidate": candidate,
        "seed": seed,
        "factor": factor,
    }
    if json_file is not None:
        write_text(json_file, json_report(found, facts))
    if junit_file is not None:
        write_text(junit_file, junit_report(found, facts))
    _print(comparison, verdict, quiet)
    return EQUAL if comparison.passed else NOT_EQUAL


def _finite(context: click.Context, parameter: click.Parameter, number: float) -> float:
    import click

    if not number < float("inf"):
        raise click.BadParameter(f"{number} is not a finite number.")
    return number


def _check_reports(
    reports: tuple[Path | None, ...], models: tuple[str, ...], inputs: Path | None
) -> None:
    """Refuse a report that cannot be written, or that would replace another file of the command."""
    paths = [path for path in reports if path is not None]
    for path in paths:
        check_writable(path, keep=(*models, *([inputs] if inputs else [])))
    if len(paths) == 2 and same_file(*paths):
        raise RepfuseError(f"--json and --junit name the same file {paths[0]}")
    if not any(path.exists() for path in paths):
        return

    from repfuse.frontends.onnx.files import data_files, read_model

    for model in models:
        # What comes through a pipe can be read once only; Path.is_file raises for a long name.
        if os.path.isfile(model):  # noqa: PTH113
            weights = data_files(read_model(model), Path(model).parent)
            for path in paths:
                if any(same_file(path, file) for file in weights):
                    raise RepfuseError(f"{path} holds weights of {model}: name another file")


def _verdict(comparison: Comparison) -> str:
    outputs, worst = comparison.outputs, comparison.worst
    failed = sum(not output.passed for output in outputs)
    if failed:
        noun = "1 comparison" if len(outputs) == 1 else f"{len(outputs)} comparisons"
        why = "" if worst is None else f" ({worst.name}: {_why(worst)})"
        return f"NOT EQUAL: {failed} of {noun} failed{why}"
    if not comparison.passed or worst is None:
        return "NOT EQUAL: nothing was compared, since no output has a finite value"
    if not worst.max_abs:
        return "equal: no value differs"
    return (
        f"equal: at most {worst.excess:.0%} of what rounding explains ({worst.name}: "
        f"{worst.max_abs:.2e} of {worst.tolerance:.2e})"
    )


def _why(worst: OutputError) -> str:
    return worst.note or f"{worst.max_abs:.2e}, where {worst.tolerance:.2e} is allowed"


def _print(comparison: Comparison, verdict: str, quiet: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, highlight=False)
    style = "bold green" if comparison.passed else "bold red"
    with printing():
        with console.capture() as capture:
            if not quiet:
                console.print(_table(comparison, wide=console.width >= 100))
            console.print(Text(printable(verdict), style=style), soft_wrap=True)
        sys.stdout.write(shown(capture.get()))


def _table(comparison: Comparison, wide: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("output", "shape", "dtype"):
        table.add_column(name, overflow="fold")
    numbers = ("max abs", "tolerance", "max rel", "SNR dB", "argmax")[: 5 if wide else 2]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=1)
    for output in comparison.outputs:
        name, shape, dtype, max_abs, max_rel, snr, argmax, _, allowed, said = output.row
        cells = [max_abs, allowed, max_rel, snr, argmax][: len(numbers)]
        if output.note:  # then the numbers say nothing
            shape, cells = shape if dtype else "", [""] * len(numbers)
        mark = Text(printable(said), style="green" if output.passed else "red")
        texts = [printable(text) for text in (name, shape, dtype, *cells)]
        table.add_row(*map(Text, texts), mark)
    return table


if __name__ == "__main__":
    main()
