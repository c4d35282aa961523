"""`repfuse-onnx IN OUT`: merge the parallel branches of an exported model.

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
    guarded,
    printable,
    printing,
    progress,
    run,
    shown,
    timeout_option,
)
from repfuse.collector import collector_paused
from repfuse.errors import RepfuseError

if TYPE_CHECKING:
    import click

    from repfuse.cli.fusing import Outcome

__all__ = ["main"]

NAME = "repfuse-onnx"
WIDTH = 120  # columns of what goes into a file or a log
TARGETS = ("cpu", "gpu", "min-macs", "min-ops", "measured")

HELP = """Merge the parallel conv, batch norm, identity and pooling branches of the ONNX model IN
into single convolutions, exactly, and write the result to OUT.

Every rewrite is proved in float64. Then IN and the result are compared on random inputs, by IN's
own rounding error, and only an equal result is written. Inputs, outputs, dynamic axes, opset and
metadata stay as they are, and so does every node that no merge touches.

\b
Examples:
  repfuse-onnx model.onnx fused.onnx
  repfuse-onnx model.onnx --plan                    what would be merged, what not, and why
  repfuse-onnx model.onnx fused.onnx --input image=1x3x320x320
  repfuse-onnx model.onnx fused.onnx --inputs samples.npz --report report.json

\b
Exit codes:
  0  done, and equal
  1  not equal: nothing was written
  2  a file, an input or an option cannot be used
"""


def main() -> NoReturn:
    """The command of that name."""
    # Many small products: waking a thread for each takes longer than computing it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run(NAME, _command, collector_paused)  # also while modules are imported


def _command() -> click.Command:
    import click

    from repfuse import __version__

    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    file = click.Path(path_type=Path)

    @click.command(NAME, help=HELP, context_settings=settings)
    @click.argument("source", metavar="IN", type=file)
    @click.argument("result", metavar="[OUT]", required=False, type=file)
    @click.option("--plan", is_flag=True, help="Print the whole plan and write no model.")
    @click.option(
        "--check/--no-check",
        default=True,
        show_default=True,
        help="Compare IN and the result on inputs before it is written.",
    )
    @click.option("--report", type=file, metavar="FILE", help="Write plan and result as JSON.")
    @click.option(
        "--input",
        "shapes",
        multiple=True,
        metavar="NAME=SHAPE",
        help="Shape of an input for costs and check, as image=1x3x224x224. May be repeated.",
    )
    @click.option(
        "--inputs",
        type=file,
        metavar="FILE.npz",
        help="Arrays by input name for the check, not random ones.",
    )
    @click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
    @click.option("--simplify", is_flag=True, help="Let onnxsim simplify the model first.")
    @click.option(
        "--target",
        type=click.Choice(TARGETS),
        default="cpu",
        show_default=True,
        help="What to save for where several exact forms are possible; measured times them here.",
    )
    @click.option(
        "--dynamic",
        is_flag=True,
        help="Also merge branches whose factors are computed from the input (dynamic convolution, "
        "gated branches): one Conv, with a kernel mixed for each sample, where that is cheaper.",
    )
    @click.option(
        "--save-external", is_flag=True, help="Write the weights to OUT.data, beside the model."
    )
    @timeout_option()
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.version_option(__version__, "-V", "--version")
    def command(debug: bool, **options: Any) -> int:
        with guarded(NAME, debug):  # here as well: click would print an empty line for Ctrl-C
            return _fuse(**options)

    return command


def _fuse(
    *,
    source: Path,
    result: Path | None,
    plan: bool,
    shapes: tuple[str, ...],
    inputs: Path | None,
    quiet: bool,
    **options: Any,
) -> int:
    if plan and result is not None:
        raise RepfuseError("--plan writes no model: leave out OUT")
    if not plan and result is None:
        raise RepfuseError("OUT is missing: repfuse-onnx IN OUT, or repfuse-onnx IN --plan")
    if shapes and inputs:
        raise RepfuseError("--input and --inputs exclude each other: arrays have shapes already")

    from repfuse.cli import isolation
    from repfuse.cli.fusing import Job, do
    from repfuse.frontends.onnx.inputs import parse_shapes, read_npz

    job = Job(
        source=source,
        final=result,
        check=options["check"],
        simplify=options["simplify"],
        target=options["target"],
        dynamic=options["dynamic"],
        external=options["save_external"],
        seed=options["seed"],
        shapes=parse_shapes(shapes),
        inputs=None if inputs is None else read_npz(inputs),
        report=options["report"],
        inputs_file=inputs,
    )
    isolation.allow(options["timeout"])
    with progress(quiet) as tell, isolation.scratch():

        def step(done: int, steps: int, text: str) -> None:
            isolation.doing(f"{text} {source}")
            if tell is not None:
                tell(done, steps, text)

        outcome = do(job, step)
    if not quiet:
        _print(outcome)
    return EQUAL if outcome.equal else NOT_EQUAL


def _print(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, highlight=False)
    with printing():
        with console.capture() as capture:
            if outcome.job.final is None:
                console.print(outcome.report)
            else:
                console.print(_table(outcome))
                for line in [*_notes(outcome), *_verdict(outcome)]:
                    console.print(Text(printable(line)), soft_wrap=True)
        sys.stdout.write(shown(capture.get()))


def _table(outcome: Outcome) -> Any:
    from rich.table import Table
    from rich.text import Text

    assert outcome.after is not None
    before, after = outcome.before, outcome.after
    title = Text(printable(outcome.job.source.name))
    table = Table(title=title, title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    kinds = {kind for kind in before.nodes | after.nodes if before.nodes[kind] != after.nodes[kind]}
    for kind in sorted(kinds, key=lambda kind: (-before.nodes[kind], kind)):
        table.add_row(Text(printable(kind)), str(before.nodes[kind]), str(after.nodes[kind]))
    table.add_row("all nodes", str(before.nodes.total()), str(after.nodes.total()))
    table.add_section()
    macs = [f"{number / 1e6:,.1f} M" for number in outcome.macs]
    table.add_row("MACs of convs and Linears", *macs)
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    sizes = [f"{size / 1e6:,.2f} MB" for size in (outcome.bytes_before, outcome.bytes_after)]
    table.add_row("file size", *sizes)
    return table


def _notes(outcome: Outcome) -> list[str]:
    """What was merged and what was left, in a few lines."""
    from collections import Counter

    report, lines = outcome.report, []
    merged = len(report.regions)
    noun = "region" if merged == 1 else "regions"
    lines.append(f"{merged} {noun} merged" if merged else "nothing to merge")
    if report.refusals:
        reasons = Counter(refusal.reason for refusal in report.refusals)
        lines.append(f"{len(report.refusals)} left alone, all shown by --plan; for example:")
        for reason, count in reasons.most_common(3):
            lines.append(f"  {count} x {reason}")
    lines += [f"{what}: {why}" for what, why in report.untraced.items()]
    lines += [f"INTERNAL ERROR, left as it is: {error}" for error in report.errors]
    return lines


def _verdict(outcome: Outcome) -> list[str]:
    """The measured error, and what was written."""
    comparison = outcome.comparison
    if comparison is not None and not comparison.passed:
        if all(output.passed for output in comparison.outputs):
            text = "NOT EQUAL: nothing was compared, since no output has a finite value"
            return [f"{text}; nothing was written"]
        return [str(comparison), "NOT EQUAL: nothing was written"]
    wrote = f"wrote {' and '.join(map(str, outcome.written))}"
    worst = None if comparison is None else comparison.worst
    if worst is None:
        return ["not compared (--no-check)", wrote]
    if not worst.max_abs:
        return ["equal: no value differs", wrote]
    return [
        f"equal: the largest error is {worst.max_abs:.2e}, in {worst.name}; rounding moves the "
        f"original by {worst.original_error:.2e} itself, and {worst.tolerance:.2e} is allowed",
        wrote,
    ]


if __name__ == "__main__":
    main()
