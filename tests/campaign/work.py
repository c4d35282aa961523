"""One job of the campaign: random networks from a range of seeds, checked one after the other."""

from __future__ import annotations

import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import onnx
import torch

from tests.campaign.checks import check
from tests.campaign.graphs import RandomFile, check_graph, check_running, random_file
from tests.campaign.modules import random_program
from tests.campaign.outcome import Outcome, Share, Wrong
from tests.campaign.quiet import quiet
from tests.campaign.shrink import shrink
from tests.campaign.shrink_graphs import shrink_graph

__all__ = ["Failure", "Tally", "one", "run", "seed_of"]

T = TypeVar("T")

GRAPHS = 2  # one network of so many is an ONNX graph
COUNTS = ("counts", "passes", "refusals", "operators", "options", "checks", "invalid")
LONGEST = 60.0  # seconds of the processor that one network may take
PATIENCE = 90.0  # seconds that a failure may take to become small
# The shares of the dearer checks: one network of so many.
AGAIN, SIZES, VERIFIED, EXPORTED = 5, 4, 16, 12


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
    number of networks. checks: the dearer ones, each made for a share. invalid: networks that
    do not run themselves, by what they raise. unsettled: networks for
    which a second fuse finds more, by the reason. seconds: of the processors; wall: of the clock.
    slowest: the number of a network and its seconds. next: the number to go on with.
    """

    counts: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    options: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)
    unsettled: dict[str, list[int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0
    slowest: tuple[int, float] = (-1, 0.0)
    next: int = 0

    def add(self, other: Tally) -> None:
        for name in COUNTS:
            getattr(self, name).update(getattr(other, name))
        for reason, numbers in other.unsettled.items():
            self.unsettled.setdefault(reason, []).extend(numbers)
        self.failures += other.failures
        self.seconds += other.seconds
        self.wall += other.wall
        self.slowest = max(self.slowest, other.slowest, key=lambda pair: pair[1])

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

    def pass_over(self, error: Exception) -> None:
        """Count a network that does not run."""
        self.counts["invalid"] += 1
        self.invalid[f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"] += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        found: dict[str, Any] = {name: dict(getattr(self, name)) for name in COUNTS}
        for name in ("unsettled", "seconds", "wall", "slowest", "next"):
            found[name] = getattr(self, name)
        return {**found, "failures": [asdict(failure) for failure in self.failures]}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Tally:
        """What `to_dict` gave, perhaps as JSON."""
        tally = cls()
        for name in COUNTS:
            getattr(tally, name).update(found[name])
        tally.unsettled = dict(found["unsettled"])
        tally.failures = [Failure(**failure) for failure in found["failures"]]
        tally.seconds, tally.wall, tally.next = found["seconds"], found["wall"], found["next"]
        tally.slowest = (found["slowest"][0], found["slowest"][1])
        return tally


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


class TooLong(BaseException):
    """No Exception: repfuse leaves alone what raises one."""


@contextmanager
def limited() -> Iterator[None]:
    """What takes longer is interrupted."""

    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"takes more than {LONGEST:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(campaign: int, numbers: range, end: float) -> Tally:
    """Check these networks, up to a time by the monotonic clock."""
    torch.set_num_threads(1)
    tally, start = Tally(), time.process_time()
    for number in numbers:
        if time.monotonic() > end:
            break
        before = time.process_time()
        one(campaign, number, tally)
        tally.slowest = max(
            tally.slowest, (number, time.process_time() - before), key=lambda pair: pair[1]
        )
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
        with limited():
            outcome = check(program, share)
        tally.note("modules", number, outcome)
    except Wrong as wrong:
        fails = _as_bad(wrong.kind, partial(check, share=share))
        script = shrink(program, fails).script()
        tally.failures.append(Failure(number, wrong.kind, str(wrong), script))
    except TooLong as error:
        tally.failures.append(Failure(number, "takes too long", str(error), program.script()))
    except Exception as error:  # a network that itself does not run: an alias, say
        tally.pass_over(error)


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
        with limited():
            outcome = check_graph(file, share)
        tally.note("graphs", number, outcome)
    except Wrong as wrong:
        small = shrink_graph(file, _as_bad(wrong.kind, partial(check_running, share=share)))
        tally.failures.append(Failure(number, wrong.kind, str(wrong), _script(small)))
    except TooLong as error:
        tally.failures.append(Failure(number, "takes too long", str(error), _script(file)))
    except Exception as error:  # the reference does not run it
        tally.pass_over(error)


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
            with limited():
                check(smaller)
        except Wrong as wrong:
            return wrong.kind == kind
        except (Exception, TooLong):  # no network, or another failure
            return False
        return False

    return fails
