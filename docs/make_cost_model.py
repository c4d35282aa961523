"""Fill in the tables of docs/cost-model.md and draw its picture, from docs/cost-model.csv.

    python -m docs.make_cost_model

The measurements come from `python -m tests.benchmarks.cost_model`. What the page says of the model
is computed here: it follows the prices in repfuse/cost.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from repfuse.cost import ALLOWANCE, MARGIN, TARGETS, VECTOR, Target
from tests.benchmarks.alternatives import alternatives
from tests.benchmarks.cost_model import MACHINE, Measurement, Prediction, predict, read

DOCS = Path(__file__).parent
PAGE, PICTURE = DOCS / "cost-model.md", DOCS / "cost-model.svg"
RUNTIMES = {"torch": "PyTorch", "onnx": "ONNX Runtime"}
DIFFERS = 1.05  # less than that is noise
PART = re.compile(r"<!-- begin: (\w+) -->(\n?).*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Point:
    """One alternative in one runtime."""

    name: str
    measured: float
    predicted: Prediction

    @property
    def differs(self) -> bool:
        return abs(math.log(self.measured)) > math.log(DIFFERS)

    @property
    def hit(self) -> bool:
        """Whether the default takes the form that is faster."""
        return self.predicted.picked == (self.measured < 1)

    @property
    def foreseen(self) -> bool:
        """The same of the prices alone, without the allowance."""
        return (self.predicted.ratio < 1) == (self.measured < 1)


def points() -> dict[str, list[Point]]:
    """All alternatives, by runtime."""
    found: dict[str, list[Point]] = {runtime: [] for runtime in RUNTIMES}
    for row, alternative in zip(read(), alternatives(), strict=True):
        assert row.name == str(alternative), "run: python -m tests.benchmarks.cost_model"
        for runtime, prediction in predict(alternative).items():
            found[runtime].append(Point(row.name, row.ratio(runtime), prediction))
    return found


def page(found: dict[str, list[Point]]) -> str:
    """The page with its computed parts; what stands between them is written by hand."""
    cells = {
        "vector": str(VECTOR),
        "allowance": f"{ALLOWANCE:g}",
        "margin": f"{MARGIN:.0%}",
        "prices": prices(),
        "targets": targets(),
        "count": str(len(found["torch"])),
        "machine": MACHINE.read_text(encoding="utf-8").strip(),
        "hits": hits(found),
        "misses": misses(found),
        "table": table(found, list(read())),
    }
    text = PAGE.read_text(encoding="utf-8")
    assert {name for name, _ in PART.findall(text)} == set(cells)

    def fill(part: re.Match[str]) -> str:
        name, newline = part.groups()
        return f"<!-- begin: {name} -->{newline}{cells[name]}{newline}<!-- end -->"

    return PART.sub(fill, text)


def prices() -> str:
    rows = ["| price of | PyTorch, eager | ONNX Runtime |", "|---|---:|---:|"]
    names = {
        "element": "a number read or written",
        "launch": "an operation started",
        "depthwise": "a MAC of a depthwise conv or of an average pooling",
        "transposed": "a MAC of a transposed conv",
        "idle": "a MAC that an idle lane could have done",
    }
    for field, text in names.items():
        numbers = (getattr(TARGETS[runtime]["cpu"], field) for runtime in RUNTIMES)
        rows.append(f"| {text} | {' | '.join(map(_number, numbers))} |")
    return "\n".join(rows)


def targets() -> str:
    rows = [
        "| target | MACs of a merge at most | a launch | a number moved |",
        "|---|---:|---:|---:|",
    ]
    for name, target in TARGETS["torch"].items():
        onnx = TARGETS["onnx"][name]
        rows.append(
            f"| `{name}` | {_allowed(target)} | {_both(target.launch, onnx.launch)} | "
            f"{_both(target.element, onnx.element)} |"
        )
    return "\n".join(rows)


def _allowed(target: Target) -> str:
    return "any" if target.allowance == math.inf else f"{target.allowance:g} times"


def _both(torch: float, onnx: float) -> str:
    return _number(torch) if torch == onnx else f"{_number(torch)} / {_number(onnx)}"


def _number(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def hits(found: dict[str, list[Point]]) -> str:
    """How often the faster form is taken, and how close the predicted ratio is."""
    rows = [
        "| runtime | alternatives | differ by over 5 % | default takes the faster | "
        "prices alone | median error of the ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for runtime, name in RUNTIMES.items():
        both = {"fitted": found[runtime][::2], "held out": found[runtime][1::2]}
        for part, some in ({"all": found[runtime]} | both).items():
            differing = [point for point in some if point.differs]
            errors = [abs(math.log(p.predicted.ratio / p.measured)) for p in some]
            rows.append(
                f"| {name} | {part} | {len(differing)} of {len(some)} | "
                f"{_share([point.hit for point in differing])} | "
                f"{_share([point.foreseen for point in differing])} | "
                f"{math.exp(median(errors)) - 1:.0%} |"
            )
    return "\n".join(rows)


def _share(hits: list[bool]) -> str:
    return f"{sum(hits)} ({sum(hits) / len(hits):.1%})"


def misses(found: dict[str, list[Point]]) -> str:
    """Where the slower form is taken, or the faster one left."""
    rows = [
        "| runtime | alternative | measured | predicted | MACs | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for runtime, name in RUNTIMES.items():
        for point in found[runtime]:
            if point.differs and not point.hit:
                what = "merged, and slower" if point.predicted.picked else "left, a gain missed"
                rows.append(
                    f"| {name} | {point.name} | {point.measured:.2f} | "
                    f"{point.predicted.ratio:.2f} | {point.predicted.macs:.2f} | {what} |"
                )
    return "\n".join(rows)


def table(found: dict[str, list[Point]], rows: list[Measurement]) -> str:
    lines = [
        "| alternative | PyTorch, µs | ratio | predicted | ONNX Runtime, µs | ratio | predicted |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row, torch, onnx in zip(rows, found["torch"], found["onnx"], strict=True):
        lines.append(
            f"| {row.name} | {row.torch_before:g} → {row.torch_after:g} | {torch.measured:.2f} | "
            f"{torch.predicted.ratio:.2f} | {row.onnx_before:g} → {row.onnx_after:g} | "
            f"{onnx.measured:.2f} | {onnx.predicted.ratio:.2f} |"
        )
    return "\n".join(lines)


def draw(found: dict[str, list[Point]], path: Path = PICTURE) -> None:
    """Predicted against measured, one panel for each runtime."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "repfuse", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True)
    ends = (0.04, 25.0)
    for panel, (runtime, name) in zip(panels, RUNTIMES.items(), strict=True):
        panel.axvspan(1 / DIFFERS, DIFFERS, color="0.9")
        panel.plot(ends, ends, color="0.6", linewidth=1)
        panel.axhline(1, color="0.6", linewidth=0.5)
        for hit, group in groupby(sorted(found[runtime], key=_is_right), key=_is_right):
            some = list(group)
            panel.scatter(
                [point.measured for point in some],
                [point.predicted.ratio for point in some],
                s=14,
                color="#2a6f97" if hit else "#c1121f",
                label="faster form taken, or no difference" if hit else "slower form taken",
                gid=f"{runtime}-{'right' if hit else 'wrong'}",
            )
        panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=name)
        panel.set_xlabel("measured time, second form / first")
        panel.set_aspect("equal")
        panel.legend(loc="upper left", fontsize="small")
    panels[0].set_ylabel("predicted price, second form / first")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def _is_right(point: Point) -> bool:
    return point.hit or not point.differs


def main() -> None:
    found = points()
    PAGE.write_text(page(found), encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main()
