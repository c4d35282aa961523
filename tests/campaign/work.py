"""One job of the campaign: random networks from a range of seeds, checked one after the other."""

from __future__ import annotations

import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import onnx
import torch

from tests.campaign.checks import Outcome, Wrong, check
from tests.campaign.graphs import check_graph, random_graph, shrink_graph
from tests.campaign.modules import random_program
from tests.campaign.quiet import quiet
from tests.campaign.shrink import shrink

__all__ = ["Failure", "Tally", "one", "run", "seed_of"]

T = TypeVar("T")

EXPORTED = 5  # one module of so many is exported, too
GRAPHS = 2  # one network of so many is an ONNX graph
PATIENCE = 120.0  # seconds that a failure may take to become small


@dataclass(frozen=True)
class Failure:
    """What does not hold, for which network, and a script that shows it."""

    number: int
    kind: str
    said: str
    script: str


@dataclass
class Tally:
    """Counts of what was checked."""

    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    unstable: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.refusals += other.refusals
        self.failures += other.failures
        self.unstable += other.unstable

    def note(self, number: int, outcome: Outcome) -> None:
        self.counts["checked"] += 1
        self.counts["fused"] += outcome.regions > 0
        self.counts["regions"] += outcome.regions
        self.counts["refused"] += bool(outcome.refusals)
        self.counts["exported"] += outcome.exported
        self.counts["unstable"] += not outcome.stable
        self.refusals += outcome.refusals
        self.unstable += [] if outcome.stable else [number]


def seed_of(campaign: int, number: int) -> int:
    """Of one network; campaigns of different seeds have none in common, up to a million."""
    return campaign * 1_000_000 + number


def run(campaign: int, numbers: range, end: float) -> Tally:
    """Check these networks, up to a time by the monotonic clock."""
    torch.set_num_threads(1)
    tally = Tally()
    for number in numbers:
        if time.monotonic() > end:
            break
        one(campaign, number, tally)
    return tally


def one(campaign: int, number: int, tally: Tally) -> None:
    """Check one network and count it."""
    seed = seed_of(campaign, number)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if number % GRAPHS == 1:
            _graph(seed, number, tally)
        else:
            _module(seed, number, tally)


def _module(seed: int, number: int, tally: Tally) -> None:
    program = random_program(random.Random(seed))
    export = number % EXPORTED == 0
    try:
        tally.note(number, check(program, export))
        tally.counts["modules"] += 1
    except Wrong as wrong:
        fails = _as_bad(wrong.kind, partial(check, export=export))
        script = shrink(program, fails).script()
        tally.failures.append(Failure(number, wrong.kind, str(wrong), script))
    except Exception:  # a network that itself does not run: an alias that the writer did not see
        tally.counts["invalid"] += 1


def _graph(seed: int, number: int, tally: Tally) -> None:
    model, sizes = random_graph(seed)
    try:
        tally.note(number, check_graph(model, sizes))
        tally.counts["graphs"] += 1
    except Wrong as wrong:
        fails = _as_bad(wrong.kind, partial(check_graph, sizes=sizes))
        small = shrink_graph(model, fails)
        script = GRAPH_SCRIPT.format(
            text=onnx.printer.to_text(small), data=small.SerializeToString(), sizes=sizes
        )
        tally.failures.append(Failure(number, wrong.kind, str(wrong), script))


GRAPH_SCRIPT = '''\
"""
{text}
"""
import onnx

import repfuse
from tests.campaign.graphs import check_graph

model = onnx.load_from_string({data!r})
print(repfuse.plan(model))
check_graph(model, {sizes!r})
'''


def _as_bad(kind: str, check: Callable[[T], object]) -> Callable[[T], bool]:
    """Whether a smaller network fails in the same way; none does once the time is over."""
    end = time.monotonic() + PATIENCE

    def fails(smaller: T) -> bool:
        if time.monotonic() > end:
            return False
        try:
            check(smaller)
        except Wrong as wrong:
            return wrong.kind == kind
        except Exception:  # no network
            return False
        return False

    return fails
