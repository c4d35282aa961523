"""Write docs/zoo.md and draw its picture, from the rows in docs/zoo/.

    python -m docs.make_zoo

The rows come from `python -m tests.sweep`, which writes the page as well.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.sweep.rows import ExportRow, Row, read

DOCS = Path(__file__).parent
FOLDER, PAGE, PICTURE = DOCS / "zoo", DOCS / "zoo.md", DOCS / "zoo.svg"
ZOOS = ("timm", "torchvision")
EXACT = 1e-9  # the largest error that counts as none

HEAD = """\
# Every model of timm and torchvision, fused

Each constructor of the two libraries, with random weights and batch norm statistics, fused in a
process of its own and compared with the original in float64. Written by a script, which says of
every model what became of it; all rows are in [zoo/](zoo/).

"""
MEANING = """\
- *Equal* is a model whose fused form gives the same outputs, to 1e-9 of the largest value in
  float64, is an instance of the same class, has nothing left for a second fuse, and was made
  without an exception, a failed probe, or a change in the original. Where a network makes any
  rounding grow, which deep ones with random norms do, the bound is 30 times what the last bit of
  the input changes. There are few of them, and they are listed below.
- *Operators* are the convs, batch norms, Linears, and additions of two tensors of the same shape,
  that one forward executes; they are counted below autograd, so that layers, functions and methods
  count alike. Products of two computed matrices, as in attention, do not count: nothing merges
  into them. *Fused* are models that execute fewer of them afterwards.
- *Seconds* are CPU time on one core for the plan and the rewrite, with the proof of each rewrite;
  they say which models take longer than others, and nothing about another machine.
- Images are as small as a model takes them, 64 x 64 if it can, which no count depends on.
- A detector is compared up to where it chooses boxes, RAFT by its networks: a choice among boxes,
  and a network that computes in float32 whatever it is given, cannot be compared in float64.

![Operators before, and what part is left](zoo.svg)

"""
BRANCHES = """\
## Models with a conversion of their own

Those for which timm's `reparameterize_model` changes what is executed: by hand, for each kind of
block. Operators are counted in the same way on both sides, and both are compared with the original
in float64.

"""
ONNX = """\
## Through ONNX

A sample of timm, drawn by a fixed seed: a model of every file of timm first, up to 50 million
parameters. Each is exported without the exporter's own folding, in float32, and the file is fused
as `repfuse-onnx` does it, without PyTorch. ONNX Runtime runs both files; the answer is what the
module gives in float64. *Equal* is a file that passes onnx's full check, has the same inputs and
outputs and nothing left for a second fuse, and is not further from the answer than 16 times the
exported one, or 16 roundings of float32 where that has less. Operators are Conv, ConvTranspose,
BatchNormalization, Gemm, MatMul and Add nodes.

"""
COMMANDS = """\
## Again

    python -m tests.sweep --family timm
    python -m tests.sweep --family torchvision
    python -m tests.sweep --family timm --onnx

Each can be stopped at any time and goes on where it was; `--jobs` takes several models at a time,
`--failed` those again that failed, `--again --match 'repvgg*'` any others. Every row names the
commit that it was made with.
"""


def page(folder: Path = FOLDER) -> str:
    """The whole page."""
    zoos = {name: read(folder / f"{name}.csv", Row) for name in ZOOS}
    exports = read(folder / "timm-onnx.csv", ExportRow)
    parts = [HEAD, _summary(zoos, exports), MEANING]
    if own := [row for rows in zoos.values() for row in rows if _has_own(row)]:
        parts += [BRANCHES, _own(own)]
    for name, rows in zoos.items():
        if rows:
            parts += [f"## {name}\n\n", _notes(rows), _files([r for r in rows if _compared(r)])]
    if exports:
        parts += [ONNX, _exporters(exports), _notes(exports), _exported(exports)]
    return "".join((*parts, COMMANDS))


def _summary(zoos: dict[str, list[Row]], exports: list[ExportRow]) -> str:
    lines = [
        "| | constructors | equal | of these fused | failed | left out | operators | "
        "largest error | seconds, median | longest |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    named: dict[str, Sequence[Row | ExportRow]] = {**zoos, "timm, as ONNX": exports}
    for name, rows in named.items():
        if not rows:
            continue
        found = Counter(row.status for row in rows)
        equal = [row for row in rows if row.status == "equal"]
        worst = max((float(row.error) for row in equal if not row.detail), default=0.0)
        seconds = [row.seconds for row in equal] or [0.0]
        left_out = found["skipped"] + found["not exported"]
        lines.append(
            f"| {name} | {len(rows)} | {found['equal']} | {sum(map(_is_fused, equal))} | "
            f"{found['failed']} | {left_out} | {_total(equal, 0)} -> {_total(equal, 1)} | "
            f"{worst:.0e} | {median(seconds):.1f} | {max(seconds):.0f} |"
        )
    return "\n".join(lines) + (
        "\n\nLeft out are models above 150 million parameters, and those that the exporter does "
        "not take.\n\n"
    )


def _has_own(row: Row) -> bool:
    return bool(row.hand_written or row.hand_written_error)


def _own(rows: list[Row]) -> str:
    counted = [row for row in rows if row.hand_written and row.work]
    fewer = sum(_after(row) < int(row.hand_written) for row in counted)
    same = sum(_after(row) == int(row.hand_written) for row in counted)
    more = len(counted) - fewer - same
    inexact = [row for row in rows if row.status == "equal" and _is_worse(row)]
    text = (
        f"Of {len(rows)} models, {fewer} have fewer operators when fused by repfuse, {same} as "
        f"many, and {more} more. Of those that repfuse fuses exactly, timm's conversion is wrong "
        f"or less exact than {EXACT:g} in {len(inexact)}: their errors are bold. An error of about "
        "1e-8 comes from conversions that make float32 layers whatever the type of the model: the "
        "weights are rounded, and the result does not run in float64 until it is cast, as it was "
        "for this table."
    )
    lines = [
        "| model | file | before | repfuse | by hand | error | error by hand |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.home, row.model)):
        before, after = row.work.split(" -> ") if row.work else ("", "")
        by_hand = f"**{row.hand_written_error}**" if _is_worse(row) else row.hand_written_error
        lines.append(
            f"| {row.model} | {row.home} | {before} | {after} | {row.hand_written} | "
            f"{row.error or row.status} | {by_hand} |"
        )
    return textwrap.fill(text, 100) + "\n\n" + "\n".join(lines) + "\n\n"


def _is_worse(row: Row) -> bool:
    """Whether the conversion by hand is not exact, where repfuse is."""
    if row.detail:
        return False
    try:
        return not float(row.hand_written_error) <= EXACT
    except ValueError:
        return True


def _notes(rows: Sequence[Row | ExportRow]) -> str:
    """What is to be known of single models."""
    lines = []
    titles: dict[str, Callable[[Row | ExportRow], bool]] = {
        "Failed": lambda row: row.status == "failed",
        "Equal within what rounding does to them": lambda row: (
            row.status == "equal" and bool(row.detail)
        ),
        "Not exported": lambda row: row.status == "not exported",
    }
    for title, fits in titles.items():
        some = sorted((row for row in rows if fits(row)), key=lambda row: row.key)
        if some:
            lines += [f"{title}:", ""]
            lines += [_item(f"{row.key}: {_plain(row.detail)}{_of(row)}") for row in some]
            lines.append("")
    return "\n".join(lines) + ("\n" if lines else "")


def _item(text: str) -> str:
    return textwrap.fill(f"- {text}", 100, subsequent_indent="  ", break_long_words=False)


def _of(row: Row | ExportRow) -> str:
    return f", the largest error is {row.error}" if row.status == "equal" else ""


def _plain(text: str) -> str:
    """Without what Markdown would read."""
    for sign in "\\`*_<|[":
        text = text.replace(sign, f"\\{sign}")
    return text


def _files(rows: list[Row]) -> str:
    lines = [
        "| file | models | fused | operators | largest error | seconds, median |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    homes: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        homes[row.home].append(row)
    for home, group in sorted(homes.items()):
        lines.append(
            f"| {home} | {len(group)} | {sum(map(_is_fused, group))} | "
            f"{_total(group, 0)} -> {_total(group, 1)} | "
            f"{max(float(row.error) for row in group):.0e} | "
            f"{median(row.seconds for row in group):.1f} |"
        )
    return "\n".join(lines) + "\n\n"


def _exporters(rows: list[ExportRow]) -> str:
    lines = ["| exporter | models | equal | failed | not exported |", "|---|---:|---:|---:|---:|"]
    for name in sorted({row.exporter for row in rows}, reverse=True):
        mine = [row for row in rows if row.exporter == name]
        found = Counter(row.status for row in mine)
        lines.append(
            f"| {name} | {len(mine)} | {found['equal']} | {found['failed']} | "
            f"{found['not exported']} |"
        )
    return "\n".join(lines) + "\n\n"


def _exported(rows: list[ExportRow]) -> str:
    lines = [
        "| model | exporter | nodes | operators | error | of the exported file | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted((row for row in rows if _compared(row)), key=lambda row: row.key):
        lines.append(
            f"| {row.model} | {row.exporter} | {row.nodes} | {row.work} | {row.error} | "
            f"{row.own_error} | {row.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n\n"


def _compared(row: Row | ExportRow) -> bool:
    return row.status == "equal"


def _is_fused(row: Row | ExportRow) -> bool:
    before, after = map(int, row.work.split(" -> "))
    return after < before


def _total(rows: Sequence[Row | ExportRow], side: int) -> int:
    return sum(int(row.work.split(" -> ")[side]) for row in rows)


def _after(row: Row) -> int:
    return int(row.work.split(" -> ")[1])


def draw(folder: Path = FOLDER, path: Path = PICTURE) -> None:
    """What part of its operators every model keeps."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "repfuse", "svg.fonttype": "none"})
    from matplotlib import pyplot

    rows = [r for name in ZOOS for r in read(folder / f"{name}.csv", Row) if _compared(r)]
    figure, panel = pyplot.subplots(figsize=(10, 5))
    groups = {"plain": ("#2a6f97", "without"), "own": ("#c1121f", "with a conversion by hand")}
    for name, (color, label) in groups.items():
        some = [row for row in rows if _has_own(row) == (name == "own")]
        before = [int(row.work.split(" -> ")[0]) for row in some]
        left = [_after(row) / count for row, count in zip(some, before, strict=True)]
        panel.scatter(before, left, s=12, color=color, alpha=0.6, label=label, gid=f"zoo-{name}")
    panel.set(xscale="log", ylim=(0, 1.05))
    panel.set_xlabel("operators of one forward before")
    panel.set_ylabel("part that is left")
    panel.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
