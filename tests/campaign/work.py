"""One job of the campaign: random networks from a range of seeds, checked one after the other."""

from __future__ import annotations

import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import onnx
import torch

from tests.campaign.checks import Outcome, Share, Wrong, check
from tests.campaign.graphs import RandomFile, check_graph, random_file, shrink_graph
from tests.campaign.modules import random_program
from tests.campaign.quiet import quiet
from tests.campaign.shrink import shrink

__all__ = ["Failure", "Tally", "one", "run", "seed_of"]

T = TypeVar("T")

GRAPHS = 2  # one network of so many is an ONNX graph
PATIENCE = 90.0  # seconds that a failure may take to become small
# The shares of the dearer checks: one network of so many.
AGAIN, SIZES, VERIFIED, EXPORTED = 5, 4, 8, 12


@dataclass(frozen=True)
class Failure:
    """What does not hold, for which network, and a script that shows it."""

    number: int
    kind: str
    said: str
    script: str


@dataclass
class Tally:
    """Counts of what was checked; those of several runs can be added.

    counts: networks. regions, passes: what was merged, and by what. refusals: what was left, by
    the reason's name in docs/refusals.md. operators, options: what the generators drew, by the
    number of networks. checks: the dearer ones, each made for a share. unsettled: networks for
    which a second fuse finds more, by the reason. seconds: of the processor.
    """

    counts: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    options: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    unsettled: dict[str, list[int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        for name in ("counts", "passes", "refusals", "operators", "options", "checks"):
            getattr(self, name).update(getattr(other, name))
        for reason, numbers in other.unsettled.items():
            self.unsettled.setdefault(reason, []).extend(numbers)
        self.failures += other.failures
        self.seconds += other.seconds

    def note(self, kind: str, number: int, outcome: Outcome) -> None:
        """Count a network that was checked and found right."""
        found = {
            "checked": 1, kind: 1, "regions": outcome.regions, "fused": outcome.regions > 0,
            "refused": bool(outcome.refusals), "refusals": outcome.refusals.total(),
            "kept for their cost": outcome.kept, "unsettled": bool(outcome.unsettled),
        }  # fmt: skip
        self.counts.update({name: int(count) for name, count in found.items()})
        self.passes += outcome.passes
        self.refusals += outcome.refusals
        self.checks += outcome.done
        if outcome.unsettled:
            self.unsettled.setdefault(f"{kind}: {outcome.unsettled}", []).append(number)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def seed_of(campaign: int, number: int) -> int:
    """Of one network; campaigns of different seeds have none in common, up to a million."""
    return campaign * 1_000_000 + number


def share_of(number: int) -> Share:
    """Which of the dearer checks a network gets."""
    place = number // GRAPHS
    return Share(
        again=place % AGAIN == 0,
        sizes=place % SIZES == 0,
        verified=place % VERIFIED == 0,
        exported=place % EXPORTED == 0,
    )


def run(campaign: int, numbers: range, end: float) -> Tally:
    """Check these networks, up to a time by the monotonic clock."""
    torch.set_num_threads(1)
    tally, start = Tally(), time.process_time()
    for number in numbers:
        if time.monotonic() > end:
            break
        one(campaign, number, tally)
    tally.seconds = time.process_time() - start
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
    program, share = random_program(random.Random(seed)), share_of(number)
    tally.operators.update(program.operators())
    tally.options.update(program.options.names())
    try:
        tally.note("modules", number, check(program, share))
    except Wrong as wrong:
        fails = _as_bad(wrong.kind, partial(check, share=share))
        script = shrink(program, fails).script()
        tally.failures.append(Failure(number, wrong.kind, str(wrong), script))
    except Exception:  # a network that itself does not run: an alias that the writer did not see
        tally.counts["invalid"] += 1


def _graph(seed: int, number: int, tally: Tally) -> None:
    share = share_of(number)
    try:
        file = random_file(seed)
    except Exception:  # the generator's own mistake
        text = traceback.format_exc()
        tally.failures.append(Failure(number, "ONNX: the generator fails", text, ""))
        return
    tally.operators.update({node.op_type for node in file.nodes()})
    tally.options.update(file.options.names())
    tally.options[f"opset {file.opset}"] += 1
    try:
        tally.note("graphs", number, check_graph(file, share))
    except Wrong as wrong:
        small = shrink_graph(file, _as_bad(wrong.kind, partial(check_graph, share=share)))
        tally.failures.append(Failure(number, wrong.kind, str(wrong), _script(small)))


def _script(file: RandomFile) -> str:
    return GRAPH_SCRIPT.format(
        text=onnx.printer.to_text(file.model),
        data=file.model.SerializeToString(),
        sizes=file.sizes,
        options=file.options,
    )


GRAPH_SCRIPT = '''\
"""
{text}
"""
import onnx

import repfuse
from tests.campaign.graphs import RandomFile, check_graph
from tests.campaign.program import Options

model = onnx.load_from_string({data!r})
options = {options!r}
print(repfuse.plan(model, **options.planned()))
check_graph(RandomFile(model, {sizes!r}, options))
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
