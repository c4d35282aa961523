"""Compare the outputs of two models by the first model's own rounding error.

Given are the reference's outputs in float64 (the *answer*), the *reference*'s in its own precision
and the *candidate*'s in the same precision; `repfuse.rounding` says what rounding explains. Pure
NumPy, so that every frontend measures alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from repfuse.errors import RepfuseError
from repfuse.rounding import FACTOR, SPACING, distance, largest, snr_db, tolerance, wide

__all__ = [
    "FLIPPING",
    "Comparison",
    "Output",
    "OutputError",
    "check_factor",
    "compare",
    "kinds",
]

INF = float("inf")
FINITE, NAN, ABOVE, BELOW = 1, 2, 4, 8  # what a float can be, see `kinds`
FLIPPING = 0.1  # the largest part of the whole numbers of an output that rounding may decide
HEAD = ("output", "shape", "dtype", "max abs", "max rel", "SNR dB", "argmax", "original")

Values: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Output:
    """One named output; `dtype` names its precision where NumPy has to hold it in a wider one."""

    name: str
    values: Values
    dtype: str = ""

    @property
    def precision(self) -> str:
        return self.dtype or self.values.dtype.name

    @property
    def is_float(self) -> bool:
        return self.values.dtype.kind in "fc"


@dataclass(frozen=True)
class OutputError:
    """How far one output of the candidate is from the float64 answer.

    max_abs: largest absolute difference from the answer; infinite where it cannot be measured.
    max_rel: max_abs over the largest absolute value of the answer, not elementwise.
    snr_db: power of the answer over the power of the difference, in dB; infinite where equal.
    argmax_agreement: share of the rows of a (rows, classes) output whose largest class is the
        reference's; None for any other output.
    tolerance: what max_abs may be.
    original_error: the reference's own largest distance from the answer.
    compared: number of values that took part: all but those that are NaN or Inf in both models,
        or of which rounding alone decides that.
    note: why the output fails, where max_abs does not tell; an output with a note never passes.
    remark: what should be known of an output that passes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    max_abs: float = INF
    max_rel: float = INF
    snr_db: float = -INF
    argmax_agreement: float | None = None
    tolerance: float = 0.0
    original_error: float = 0.0
    compared: int = 0
    passed: bool = False
    note: str = ""
    remark: str = ""

    @property
    def excess(self) -> float:
        """max_abs as a multiple of the tolerance; infinite for a failure of another kind."""
        if self.note:
            return INF
        return self.max_abs / self.tolerance if self.max_abs else 0.0

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of the printed table."""
        agreement = self.argmax_agreement
        return (
            self.name,
            "x".join(map(str, self.shape)) or "scalar",
            self.dtype,
            f"{self.max_abs:.2e}",
            f"{self.max_rel:.2e}",
            f"{self.snr_db:.1f}",
            "" if agreement is None else f"{agreement:.2%}",
            f"{self.original_error:.2e}",
            f"{self.tolerance:.2e}",
            self.verdict,
        )

    @property
    def verdict(self) -> str:
        """Whether the output passes, and what is to be said of it."""
        if not self.passed:
            return f"FAILS: {self.note or 'beyond the tolerance'}"
        return f"ok: {self.remark}" if self.remark else "ok"


@dataclass(frozen=True)
class Comparison:
    """The measured errors of every output; prints as a table. answer: what they are errors from."""

    outputs: tuple[OutputError, ...]
    answer: str = "the float64 answer"

    @property
    def passed(self) -> bool:
        """Whether every output passed, and at least one value was really compared."""
        compared = sum(output.compared for output in self.outputs)
        return compared > 0 and all(output.passed for output in self.outputs)

    @property
    def worst(self) -> OutputError | None:
        """The output closest to its tolerance, or furthest beyond it; None without outputs."""
        return max(self.outputs, key=lambda output: output.excess, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The same in plain JSON types; a number that is not finite is None, as JSON has none."""
        rows = [asdict(output) for output in self.outputs]
        for row in rows:
            numbers = [key for key, value in row.items() if isinstance(value, float)]
            row.update({key: None for key in numbers if not np.isfinite(row[key])})
        return {"passed": self.passed, "outputs": rows}

    def __str__(self) -> str:
        failed = sum(not output.passed for output in self.outputs)
        verdict = f"equivalent: no further from {self.answer} than rounding explains"
        if failed:
            verdict = f"not equivalent: {failed} of {len(self.outputs)} outputs differ"
        elif not self.passed:
            verdict = "not equivalent: nothing is compared, no output has a finite value"
        table = [(*HEAD, "tolerance", ""), *(output.row for output in self.outputs)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([verdict, *lines])


def compare(
    answers: Sequence[Output],
    references: Sequence[Output],
    candidates: Sequence[Output],
    *,
    factor: float = FACTOR,
    rounding: Mapping[str, float] | None = None,
    seen: Mapping[str, Values] | None = None,
) -> Comparison:
    """Compare a candidate's outputs with a reference's, paired by name; in order where one repeats.

    answers are the reference's outputs in float64, integers and booleans as they are. rounding
    holds, by name and in the output's own units, a second measurement of the reference's
    rounding error, for a reference that is float64 itself or has few values; the larger counts.
    Integers, booleans and anything else that is no float must equal the reference or the answer;
    for these `rounding` holds how many values rounding alone has been seen to change. `factor`
    times as many may differ, if that is a small part of them: an argmax over many positions.
    seen holds, by name, the `kinds` of the values in other runs of the reference: where these
    differ, rounding alone decides whether a value is NaN or infinite, and it is not judged.
    """
    check_factor(factor)
    answer_of, candidate_of = _by_name(answers), _by_name(candidates)
    second, others = rounding or {}, seen or {}
    errors = []
    for reference in references:
        name = reference.name
        answer, candidate = (
            outputs[name].pop(0) if outputs[name] else None for outputs in (answer_of, candidate_of)
        )
        fault = _mismatch(answer, reference, candidate)
        if fault or answer is None or candidate is None:
            errors.append(_failure(reference, fault))
        elif not reference.is_float:
            flips = factor * second.get(name, 0.0)
            errors.append(_compare_exactly(answer, reference, candidate, flips))
        else:
            outputs = answer, reference, candidate
            errors.append(_measure(*outputs, factor, second.get(name, 0.0), others.get(name)))
    extra = [output for same in candidate_of.values() for output in same]
    return Comparison((*errors, *(_failure(output, "only in the candidate") for output in extra)))


def check_factor(factor: float) -> None:
    """Raise RepfuseError where it is no finite number above 0."""
    if isinstance(factor, bool) or not isinstance(factor, int | float | np.number):
        raise RepfuseError(f"the factor is {factor!r}: give a number above 0")
    if not 0.0 < factor < INF:
        raise RepfuseError(f"the factor is {factor}: give a finite number above 0")


def kinds(values: Values) -> Values:
    """For each float a bit that tells whether it is finite, NaN, or above or below all numbers."""
    found = np.where(np.isfinite(values), FINITE, NAN)
    below = values.real < 0
    return np.where(np.isinf(values), np.where(below, BELOW, ABOVE), found).astype(np.uint8)


def _by_name(outputs: Iterable[Output]) -> defaultdict[str, list[Output]]:
    """The outputs of each name, in their order: a tensor can be given out more than once."""
    named = defaultdict(list)
    for output in outputs:
        named[output.name].append(output)
    return named


def _failure(output: Output, note: str) -> OutputError:
    return OutputError(output.name, output.values.shape, output.precision, note=note)


def _mismatch(answer: Output | None, reference: Output, candidate: Output | None) -> str:
    """What forbids to compare values, or nothing."""
    if candidate is None:
        return "missing in the candidate"
    mine, theirs = reference.values.shape, candidate.values.shape
    if mine != theirs:
        return f"shape {mine} in the reference, {theirs} in the candidate"
    if reference.precision != candidate.precision:
        return (
            f"dtype {reference.precision} in the reference, {candidate.precision} in the candidate"
        )
    if answer is None or answer.values.shape != mine:
        return "rounding alone decides the reference's shape: its float64 answer has another one"
    if reference.is_float and reference.precision not in SPACING:
        return f"no rounding is known for dtype {reference.precision}"
    return ""


def _compare_exactly(
    answer: Output, reference: Output, candidate: Output, flips: float
) -> OutputError:
    right = np.asarray(candidate.values == reference.values, dtype=bool)
    equal = right | np.asarray(candidate.values == answer.values, dtype=bool)
    size, wrong = equal.size, int(np.sum(~equal))
    if wrong > min(flips, FLIPPING * size):
        reason = ", and rounding alone changes some as well" if flips else ""
        return _failure(reference, f"{wrong} of {size} values differ{reason}")
    decided = int(np.sum(~right))
    return OutputError(
        name=reference.name,
        shape=reference.values.shape,
        dtype=reference.precision,
        max_abs=0.0,
        max_rel=0.0,
        snr_db=INF,
        compared=size,
        passed=True,
        remark=f"rounding alone decides {decided} of {size} values" if decided else "",
    )


def _measure(
    answer: Output,
    reference: Output,
    candidate: Output,
    factor: float,
    second: float,
    seen: Values | None,
) -> OutputError:
    exact, ours, theirs = (wide(output.values) for output in (answer, reference, candidate))
    same = ~np.isfinite(ours) & ((np.isnan(ours) & np.isnan(theirs)) | (ours == theirs))
    judged, undecided = ~same, 0
    if seen is not None:
        own = kinds(ours) | seen
        unsure = ((own & (own - 1)) != 0) & ((own & kinds(theirs)) != 0)
        judged, undecided = judged & ~unsure, int(np.sum(unsure))
    # Where the answer itself is not finite, the reference is the best that is known.
    target = np.where(np.isfinite(exact), exact, ours)[judged]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(theirs[judged] - target)
    lost = ~np.isfinite(difference)
    difference[lost] = INF

    peak, worst = largest(target[np.isfinite(target)]), largest(difference)
    original = max(distance(ours, exact), second)
    allowed = tolerance(original, peak, reference.precision, factor)
    note = ""
    if lost.any():
        note = f"{lost.sum()} of {lost.size} values are NaN or Inf in only one of the two"
    elif original == INF or factor * original > peak > 0.0:
        note = "rounding alone moves the reference by more than its values, so nothing is shown"
    return OutputError(
        name=reference.name,
        shape=reference.values.shape,
        dtype=reference.precision,
        max_abs=worst,
        max_rel=worst / peak if peak else (INF if worst else 0.0),
        snr_db=snr_db(target, difference),
        argmax_agreement=_argmax_agreement(reference.values, candidate.values),
        tolerance=allowed,
        original_error=original,
        compared=difference.size,
        passed=worst <= allowed and not note,
        note=note,
        remark=(
            f"rounding alone decides whether {undecided} of {ours.size} values are NaN or Inf, "
            "so these are not judged"
            if undecided
            else ""
        ),
    )


def _argmax_agreement(reference: Values, candidate: Values) -> float | None:
    if reference.ndim != 2 or 0 in reference.shape or reference.shape[1] == 1:
        return None
    if reference.dtype.kind == "c":
        return None
    return float(np.mean(reference.argmax(axis=1) == candidate.argmax(axis=1)))
