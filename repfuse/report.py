"""What a plan says: what is merged, what is left and why, and what it saves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from repfuse.cost import Cost
from repfuse.reasons import id_of

__all__ = ["KeptReport", "RefusalReport", "RegionReport", "Report"]


@dataclass(frozen=True)
class RegionReport:
    """One rewritten region: where it is, what it was and what it becomes, with its costs.

    Costs are for the input that `Report.basis` names. Prices are what the target weighs, in MACs
    of a dense conv; milliseconds are what was measured, and 0 where nothing was. passes: those
    that made the new operators.
    """

    where: str
    before: list[str]
    after: list[str]
    cost_before: Cost
    cost_after: Cost
    price_before: float = 0.0
    price_after: float = 0.0
    milliseconds_before: float = 0.0
    milliseconds_after: float = 0.0
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusalReport:
    """Something that is left alone because it cannot be merged exactly."""

    where: str
    what: str
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule} refused: {self.reason}"


@dataclass(frozen=True)
class KeptReport:
    """Something that could be merged, and is left because that would cost more."""

    where: str
    what: str
    reason: str


@dataclass
class Report:
    """All that a plan found. errors: rewrites that failed their probe, with the node names; basis:
    what the costs are for; target: what was saved for."""

    model: str
    regions: list[RegionReport] = field(default_factory=list)
    refusals: list[RefusalReport] = field(default_factory=list)
    kept: list[KeptReport] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)
    capped: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    basis: str = "for a 224 x 224 image"
    target: str = "cpu"

    @property
    def cost_before(self) -> Cost:
        return sum((region.cost_before for region in self.regions), Cost())

    @property
    def cost_after(self) -> Cost:
        return sum((region.cost_after for region in self.regions), Cost())

    @property
    def ids(self) -> list[str]:
        """The entries of docs/refusals.md about what is left alone, each once."""
        reasons = [entry.reason for entry in self.refusals]
        reasons += [entry.reason for entry in self.kept]
        names = dict.fromkeys(map(id_of, (*reasons, *self.untraced.values(), *self.caps)))
        return [name for name in names if name]

    @property
    def caps(self) -> list[str]:
        """For each value of `capped` a sentence."""
        tried = "only the 8 nearest and the 8 farthest ancestors were tried"
        return [f"{value}: {tried}" for value in self.capped]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers.

        What is left alone has the `id` under which docs/refusals.md explains it.
        """
        found = asdict(self)
        for entry in (*found["refusals"], *found["kept"]):
            entry["id"] = id_of(entry["reason"])
        return found

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, no_color=True, highlight=False, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table
        from rich.text import Text

        yield Text(self._headline())
        if self.regions:
            table = Table(title="Merged", title_justify="left", expand=False)
            for name in ("where", "before", "after"):
                table.add_column(name, overflow="fold")
            wide = options.max_width >= 100
            times = any(region.milliseconds_before for region in self.regions)
            names = ("MACs", "bytes moved", "launches", *(("ms",) if times else ()), "saved")
            for name in names if wide else ():
                table.add_column(name, justify="right", no_wrap=True)
            for region in self.regions:
                before, after = " + ".join(_counted(region.before)), " + ".join(region.after)
                costs = _costs(region, times) if wide else ()
                table.add_row(region.where, before, after, *costs)
            yield table
        for title, rows in (
            ("Left alone", [(r.where, r.what, r.reason) for r in self.refusals]),
            ("Cheaper as it is", [(k.where, k.what, k.reason) for k in self.kept]),
            ("Not traced as a whole", [(p or "(model)", "", r) for p, r in self.untraced.items()]),
        ):
            if rows:
                table = Table(title=title, title_justify="left", expand=False)
                for name in ("where", "what", "reason"):
                    table.add_column(name, overflow="fold")
                for row in rows:
                    table.add_row(*row)
                yield table
        for cap in self.caps:
            yield Text(cap)
        links = " ".join(f"#{name}" for name in self.ids)
        if links:
            yield Text(f"What it means, and what to change: docs/refusals.md {links}")
        for error in self.errors:
            yield Text(f"INTERNAL ERROR, left as it is: {error}")

    def _headline(self) -> str:
        old, new = self.cost_before, self.cost_after
        if not self.regions:
            return f"{self.model}: nothing to merge, {len(self.refusals)} refusals"
        regions = "1 region" if len(self.regions) == 1 else f"{len(self.regions)} regions"
        return (
            f"{self.model}: {regions} merged: operations {old.launches} -> {new.launches}, "
            f"MACs {_short(old.macs)} -> {_short(new.macs)} ({self.basis}), "
            f"bytes moved {_bytes(old)} -> {_bytes(new)}, "
            f"parameters {_short(old.parameters)} -> {_short(new.parameters)}, "
            f"{self._saved()}; {len(self.refusals)} refusals"
        )

    def _saved(self) -> str:
        """What all regions save together."""
        old, new = (
            sum(getattr(region, name) for region in self.regions)
            for name in ("price_before", "price_after")
        )
        text = f"{_percent(old, new)} of the price for {self.target!r} saved"
        if not any(region.milliseconds_before for region in self.regions):
            return text
        before = sum(region.milliseconds_before for region in self.regions)
        after = sum(region.milliseconds_after for region in self.regions)
        return f"{before:.3g} -> {after:.3g} ms, {text}"


def _costs(region: RegionReport, times: bool) -> tuple[str, ...]:
    """The cells of a region for its costs."""
    old, new = region.cost_before, region.cost_after
    ms = f"{region.milliseconds_before:.3g} -> {region.milliseconds_after:.3g}"
    return (
        f"{_short(old.macs)} -> {_short(new.macs)}",
        f"{_bytes(old)} -> {_bytes(new)}",
        f"{old.launches} -> {new.launches}",
        *((ms,) if times else ()),
        _percent(region.price_before, region.price_after),
    )


def _bytes(cost: Cost) -> str:
    return _short(4 * cost.elements)


def _percent(before: float, after: float) -> str:
    """How much less the second is."""
    return f"{1 - after / before:.0%}" if before else "0%"


def _counted(names: list[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [f"{count} x {name}" if count > 1 else name for name, count in counts.items()]


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"
