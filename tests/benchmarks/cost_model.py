"""How well the cost model tells which of two forms is faster, in PyTorch and in ONNX Runtime.

    python -m tests.benchmarks.cost_model            measure all, write docs/cost-model.csv
    python -m tests.benchmarks.cost_model RepVGG     print those whose name holds the text
    python -m tests.benchmarks.cost_model --fit      the prices that fit every other row of the file

Every alternative is run in its two forms, in turn, on one thread, in CPU time; it takes about two
minutes. `python -m docs.make_cost_model` makes the page and its picture of the file.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from repfuse.cost import Cost, Target, cost_of, target_named
from repfuse.frontends.onnx.lower import lower
from repfuse.frontends.onnx.scopes import scopes_of
from repfuse.graph import Opaque, Sum
from repfuse.operators import Affine
from repfuse.select import SAVING
from tests.benchmarks.alternatives import Alternative, alternatives
from tests.benchmarks.timing import eager, exported, in_turn, machine, session

__all__ = ["DATA", "MACHINE", "Measurement", "Prediction", "predict", "read"]

DATA = Path(__file__).parents[2] / "docs" / "cost-model.csv"
START = (4.0, 4e5, 2.0, 2.0, 1.0)  # the first prices of a target
MACHINE = DATA.with_suffix(".txt")


@dataclass(frozen=True)
class Measurement:
    """CPU microseconds of the two forms of an alternative."""

    name: str
    torch_before: float
    torch_after: float
    onnx_before: float
    onnx_after: float

    def ratio(self, runtime: str) -> float:
        """The time of the second form, in times of the first."""
        if runtime == "torch":
            return self.torch_after / self.torch_before
        return self.onnx_after / self.onnx_before


@dataclass(frozen=True)
class Prediction:
    """ratio: the price of the second form by that of the first. macs: the same of the MACs.
    picked: whether the default target takes the second form."""

    ratio: float
    macs: float
    picked: bool


def measure(alternative: Alternative) -> Measurement:
    x = torch.randn(*alternative.shape, generator=torch.Generator().manual_seed(0))
    forms = [alternative.before().eval(), alternative.after().eval()]
    seconds = in_turn([eager(form, x) for form in forms])
    seconds += in_turn([session(exported(form, x), x) for form in forms])
    return Measurement(str(alternative), *(float(f"{1e6 * value:.4g}") for value in seconds))


@dataclass(frozen=True)
class Priced:
    """cost: that of all nodes of a form. parallel: whether its last node is a sum."""

    cost: Cost
    parallel: bool


def costs(alternative: Alternative) -> dict[str, tuple[Priced, Priced]]:
    """What the two forms cost, by runtime: ONNX Runtime gets files whose norms are folded."""
    x = torch.zeros(*alternative.shape)
    forms = [alternative.before().eval(), alternative.after().eval()]
    folded = [_cost(exported(form, x), alternative.shape) for form in forms]
    kept = [
        _cost(exported(form, x, norms=True), alternative.shape) if _has_norm(form) else cost
        for form, cost in zip(forms, folded, strict=True)
    ]
    return {"torch": (kept[0], kept[1]), "onnx": (folded[0], folded[1])}


def _has_norm(form: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in form.modules())


def predict(alternative: Alternative) -> dict[str, Prediction]:
    """What the default target says of the two forms, by runtime."""
    found = {}
    for runtime, (before, after) in costs(alternative).items():
        target = target_named("cpu", runtime)
        (old, macs), (new, more) = (
            (target.price(form.cost), form.cost.macs) for form in (before, after)
        )
        allowed = target.allows(before.parallel, (old, macs), (new, more))
        found[runtime] = Prediction(new / old, more / macs, new < old - SAVING and allowed)
    return found


def fit(runtime: str, rows: list[tuple[Measurement, tuple[Priced, Priced]]]) -> dict[str, float]:
    """The prices with the least error of the predicted ratios' logarithms, outliers damped."""
    from scipy.optimize import least_squares

    names = [field.name for field in fields(Target)][: len(START)]

    def errors(logarithms: Any) -> list[float]:
        prices: list[float] = [math.exp(one) for one in logarithms]
        target = Target(prices[0], prices[1], prices[2], prices[3], prices[4])
        return [
            math.log(target.price(after.cost) / target.price(before.cost) / row.ratio(runtime))
            for row, (before, after) in rows
        ]

    found = least_squares(
        errors, [math.log(price) for price in START], loss="soft_l1", f_scale=0.2
    ).x
    return dict(zip(names, map(math.exp, found), strict=True))


def _cost(file: bytes, shape: tuple[int, ...]) -> Priced:
    """The cost of all nodes of a file."""
    (scope,) = scopes_of(onnx.load_from_string(file))
    graph, total, last = lower(scope, None, shapes=shape).graph, Cost(), None
    for value, node in graph.nodes.items():
        producer, operands = node.producer, graph.operands(value)
        skip = isinstance(producer, Affine) and producer.is_identity
        if isinstance(producer, Opaque) or node.inner or skip:
            continue
        channels = [graph.nodes[operand].channels for operand in operands]
        total, last = total + cost_of(producer, graph.nodes[operands[0]].area, channels), producer
    return Priced(total, isinstance(last, Sum))


def read() -> Iterator[Measurement]:
    """The measurements that are in the repository."""
    with DATA.open(encoding="utf-8", newline="") as file:
        for name, *numbers in list(csv.reader(file))[1:]:
            yield Measurement(name, *map(float, numbers))


def write(rows: list[Measurement]) -> None:
    with DATA.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Measurement))
        writer.writerows(astuple(row) for row in rows)
    MACHINE.write_text(f"{machine()}\n", encoding="utf-8")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    wanted = given.text
    torch.set_num_threads(1)
    if given.fit:
        known = [costs(alternative) for alternative in alternatives()]
        for runtime in known[0]:
            pairs = [(row, cost[runtime]) for row, cost in zip(read(), known, strict=True)]
            for half, name in ((pairs[::2], "every other row"), (pairs, "all rows")):
                prices = {name: float(f"{price:.3g}") for name, price in fit(runtime, half).items()}
                print(f"{runtime}, {name}: {prices}")
        return
    rows = []
    for alternative in alternatives():
        if wanted not in str(alternative):
            continue
        row, expected = measure(alternative), predict(alternative)
        rows.append(row)
        cells = [
            f"{runtime} {row.ratio(runtime):5.2f}, predicted {expected[runtime].ratio:5.2f}"
            for runtime in expected
        ]
        print(f"{row.name:90} {'   '.join(cells)}", flush=True)
    if not wanted:
        write(rows)


if __name__ == "__main__":
    main()
