"""What came of one network: counts, or that something does not hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from repfuse.reasons import id_of
from repfuse.report import Report

__all__ = ["Outcome", "Wrong", "note"]


class Wrong(AssertionError):
    """Something that must hold does not. kind: which of them."""

    def __init__(self, kind: str, said: object) -> None:
        super().__init__(f"{kind}: {' '.join(str(said).split())[:400]}")
        self.kind = kind


@dataclass
class Outcome:
    """regions, refusals by reason and what is kept for its cost: of the plan. unsettled: why a
    second fuse finds more, if it does. done: which of the dearer checks were made."""

    regions: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    unsettled: str = ""
    done: Counter[str] = field(default_factory=Counter)


def note(outcome: Outcome, report: Report) -> None:
    """Add what a plan says."""
    outcome.regions += len(report.regions)
    outcome.passes.update(name for region in report.regions for name in region.passes)
    outcome.refusals.update(id_of(refusal.reason) or refusal.rule for refusal in report.refusals)
    outcome.kept += len(report.kept)
    if report.untraced:
        outcome.refusals["untraced"] += 1
