"""What a campaign prints of its counts."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from tests.campaign.work import Tally

__all__ = ["line", "show"]

MOST = 15  # names that are printed of a count; a file has all


def line(tally: Tally) -> str:
    """One line while it runs."""
    counts = tally.counts
    return (
        f"{counts['checked']} networks in {tally.wall:.0f} s ({counts['modules']} modules, "
        f"{counts['graphs']} graphs): {counts['fused']} fused ({counts['regions']} regions), "
        f"{counts['refused']} with near-misses, {len(tally.failures)} FAILED, "
        f"{_rate(tally)}"
    )


def _rate(tally: Tally) -> str:
    checked = tally.counts["checked"]
    return (
        f"{checked / max(tally.wall, 1e-9):.1f} a second, "
        f"{checked / max(tally.seconds, 1e-9):.1f} for each second of a processor"
    )


def show(console: Console, tally: Tally) -> None:
    """All counts, the most frequent ones of each kind."""

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    counts = tally.counts
    tell(line(tally))
    tell(
        f"{counts['refusals']} near-misses were refused, {counts['kept for their cost']} merges "
        f"left for their cost; {counts['invalid']} networks that do not run were passed over"
    )
    for title, found in (
        ("merged by", tally.passes),
        ("near-misses by the reason (docs/refusals.md)", tally.refusals),
        ("options", tally.options),
        ("checks of a share", tally.checks),
        ("operators of the networks", tally.operators),
        ("passed over", tally.invalid),
    ):
        tell(f"{title} ({len(found)} kinds): {_most(found)}")
    for reason, numbers in sorted(tally.unsettled.items()):
        some = ", ".join(map(str, sorted(numbers)[:MOST]))
        tell(f"a second fuse finds more ({reason}): {len(numbers)} networks: {some}")
    number, seconds = tally.slowest
    tell(f"slowest: network {number}, {seconds:.1f} s")
    for failure in tally.failures:
        tell(f"FAILED: network {failure.number}: {failure.said}")


def _most(found: Counter[str]) -> str:
    told = [f"{name} {count}" for name, count in found.most_common(MOST)]
    return ", ".join(told + ["..."] * (len(found) > MOST)) or "none"
