"""The comparison of named arrays: what passes, what fails, and what the table says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from repfuse.comparison import Comparison, Output, OutputError, compare, kinds
from repfuse.errors import RepfuseError
from repfuse.rounding import distance, snr_db, tolerance

NAN, INF = float("nan"), float("inf")


def one(
    answer: Any, reference: Any, candidate: Any, dtype: str = "", **options: Any
) -> OutputError:
    """Compare a single output, given in float32 unless it is an array already."""

    def output(values: Any) -> list[Output]:
        array = values if isinstance(values, np.ndarray) else np.asarray(values, np.float32)
        return [Output("y", array, dtype)]

    wide = np.asarray(answer, np.float64) if isinstance(answer, list) else answer
    (error,) = compare(output(wide), output(reference), output(candidate), **options).outputs
    return error


def test_the_tolerance_is_the_references_own_error_times_the_factor() -> None:
    answer, reference = [1.0, 2.0], [1.0, 2.0 + 1e-3]
    error = one(answer, reference, [1.0, 2.0 - 3.9e-3])
    assert error.passed
    assert error.original_error == pytest.approx(1e-3, rel=1e-3)
    assert error.tolerance == pytest.approx(4e-3, rel=1e-2)
    assert not one(answer, reference, [1.0, 2.0 - 4.1e-3]).passed
    assert not one(answer, reference, [1.0, 2.0 - 3.9e-3], factor=2.0).passed


@pytest.mark.parametrize(
    ("dtype", "ulp"), [("float16", 2**-9), ("bfloat16", 2**-6), ("float32", 2**-22)]
)
def test_the_floor_is_four_ulps_of_the_maximum(dtype: str, ulp: float) -> None:
    assert one([1e-3, 2.0], [1e-3, 2.0], [1e-3, 2.0 + 4 * ulp], dtype).passed
    assert not one([1e-3, 2.0], [1e-3, 2.0], [1e-3, 2.0 + 5 * ulp], dtype).passed


def test_a_second_measurement_of_rounding_counts_when_it_is_larger() -> None:
    arguments = ([1.0, 2.0], [1.0, 2.0], [1.0, 2.001])
    assert not one(*arguments).passed
    assert one(*arguments, rounding={"y": 1e-3}).passed
    assert not one(*arguments, rounding={"other": 1e-3}).passed


def test_measures() -> None:
    error = one([3.0, -4.0], [3.0, -4.0], [3.0, -4.5])
    assert (error.max_abs, error.max_rel) == (0.5, 0.125)
    assert error.snr_db == pytest.approx(20.0)
    assert one([3.0, -4.0], [3.0, -4.0], [3.0, -4.0]).snr_db == INF
    assert snr_db(np.array([1e300, 1e300]), np.array([1e298, 1e298])) == pytest.approx(40.0)
    assert snr_db(np.zeros(2), np.ones(2)) == -INF
    assert tolerance(0.0, 0.0, "float32") > 0.0
    assert distance(np.array([1.0, NAN]), np.array([1.5, 2.0])) == 0.5
    assert distance(np.zeros(2), np.zeros(3)) == INF


def test_argmax_agreement_is_for_rows_of_classes() -> None:
    rows = [[0.0, 1.0], [1.0, 0.0]]
    assert one(rows, rows, [[0.0, 1.0], [0.0, 1.0]]).argmax_agreement == 0.5
    assert one([rows], [rows], [rows]).argmax_agreement is None
    assert one([[1.0]], [[1.0]], [[1.0]]).argmax_agreement is None


@pytest.mark.parametrize(
    ("answer", "reference", "candidate", "passes"),
    [
        ([1.0, NAN], [1.0, NAN], [1.0, NAN], True),
        ([1.0, INF], [1.0, INF], [1.0, INF], True),
        ([1.0, 7e4], [1.0, INF], [1.0, INF], True),  # overflows in both
        ([1.0, 7e4], [1.0, INF], [1.0, 7e4], True),  # the candidate is the better one
        ([1.0, 2.0], [1.0, 2.0], [1.0, NAN], False),
        ([1.0, 2.0], [1.0, 2.0], [1.0, INF], False),
        ([1.0, INF], [1.0, INF], [1.0, -INF], False),
        ([1.0, INF], [1.0, INF], [1.0, NAN], False),
        ([1.0, NAN], [1.0, NAN], [1.0, 0.0], False),
        ([1.0, NAN], [1.0, 2.0], [1.0, 2.0], True),  # only the answer is lost
        ([1.0, NAN], [1.0, 2.0], [1.0, 3.0], False),
    ],
)
def test_values_that_are_not_finite(
    answer: list[float], reference: list[float], candidate: list[float], passes: bool
) -> None:
    assert one(answer, reference, candidate).passed is passes


def test_nothing_compared_is_no_proof() -> None:
    lost = np.full(3, NAN)
    comparison = compare([Output("y", lost)], [Output("y", lost)], [Output("y", lost)])
    assert comparison.outputs[0].passed
    assert not comparison.passed
    assert "nothing is compared" in str(comparison)
    assert not compare([], [], []).passed
    assert compare([], [], []).worst is None


def test_a_reference_that_is_all_rounding_proves_nothing() -> None:
    error = one([1.0, 2.0], [1.0, 3.0], [1.0, 2.0])
    assert not error.passed
    assert "rounding alone moves the reference" in error.note


@pytest.mark.parametrize(
    ("reference", "candidate", "note"),
    [
        (np.zeros(2), np.zeros(3), "shape (2,) in the reference, (3,) in the candidate"),
        (np.zeros(2), np.zeros(2, "f"), "dtype float64 in the reference, float32 in the candidate"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 values differ"),
        (np.array(["a"]), np.array(["b"]), "1 of 1 values differ"),
        (np.array([True]), np.array([1]), "dtype bool in the reference, int64 in the candidate"),
    ],
)
def test_what_cannot_be_equal(reference: Any, candidate: Any, note: str) -> None:
    error = one(reference, reference, candidate)
    assert note in error.note
    assert not error.passed
    assert error.excess == INF


def test_a_dtype_without_known_rounding() -> None:
    error = one([1.0], [1.0], [1.0], "float8_e5m2")
    assert error.note == "no rounding is known for dtype float8_e5m2"
    assert not error.passed


def test_an_integer_may_be_the_references_or_the_answers() -> None:
    answer, reference = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert one(answer, reference, np.array([1, 2, 3])).passed
    assert one(answer, reference, np.array([1, 2, 4])).passed
    assert not one(answer, reference, np.array([1, 2, 5])).passed


def test_whole_numbers_may_differ_where_rounding_has_been_seen_to_change_some() -> None:
    values = np.arange(100)
    for wrong, flips, passes in ((4, 0, False), (4, 1, True), (5, 1, False), (11, 50, False)):
        other = np.where(values < wrong, -1, values)
        error = one(values, values, other, rounding={"y": float(flips)})
        assert error.passed is passes
        assert f"{wrong} of 100 values" in (error.remark if passes else error.note)
        assert ("rounding alone" in error.verdict) is (flips > 0)


def test_the_verdict_names_the_answer_and_remarks() -> None:
    good = OutputError("y", (1,), "float32", 0.0, compared=1, passed=True, remark="by luck")
    comparison = Comparison((good,), "what the file gives")
    assert str(comparison).startswith("equivalent: no further from what the file gives than")
    assert str(comparison).endswith("ok: by luck")


def test_outputs_are_paired_by_name() -> None:
    def outputs(**named: float) -> list[Output]:
        return [Output(name, np.array([value])) for name, value in named.items()]

    both = outputs(a=1.0, b=2.0)
    assert compare(both, both, outputs(b=2.0, a=1.0)).passed
    missing = compare(both, both, outputs(a=1.0))
    assert [error.note for error in missing.outputs] == ["", "missing in the candidate"]
    extra = compare(both, both, outputs(a=1.0, b=2.0, c=3.0))
    assert [error.note for error in extra.outputs] == ["", "", "only in the candidate"]
    assert not missing.passed and not extra.passed
    moved = compare(outputs(a=1.0), both, both)
    assert "rounding alone decides" in moved.outputs[1].note


def test_an_output_that_is_given_twice_is_compared_twice() -> None:
    twice = [Output("y", np.array([1.0])), Output("y", np.array([2.0]))]
    assert compare(twice, twice, twice).passed
    assert [error.passed for error in compare(twice, twice, twice[::-1]).outputs] == [False, False]
    fewer, more = compare(twice, twice, twice[:1]), compare(twice[:1], twice[:1], twice)
    assert [error.note for error in fewer.outputs] == ["", "missing in the candidate"]
    assert [error.note for error in more.outputs] == ["", "only in the candidate"]


@pytest.mark.parametrize(
    ("reference", "candidate", "passes", "compared"),
    [
        ([1.0, NAN], [1.0, NAN], True, 1),
        ([1.0, NAN], [1.0, 5.0], True, 1),
        ([1.0, 3.0], [1.0, NAN], True, 1),
        ([1.0, NAN], [NAN, NAN], False, 1),  # rounding decides the second only
        ([1.0, 3.0], [1.0, INF], False, 2),  # never infinite in the reference
        ([1.0, 3.0], [1.1, 3.0], False, 1),
    ],
)
def test_where_rounding_decides_what_is_nan_nothing_is_judged(
    reference: list[float], candidate: list[float], passes: bool, compared: int
) -> None:
    seen = kinds(np.array([1.0, 3.0])) | kinds(np.array([1.0, NAN]))
    error = one(reference, reference, candidate, seen={"y": seen})
    assert (error.passed, error.compared) == (passes, compared)
    decided = "rounding alone decides whether 1 of 2 values are NaN or Inf" in error.remark
    assert decided is (candidate[1] != INF)


def test_kinds_of_floats() -> None:
    values = [1.0, -2.0, NAN, INF, -INF]
    assert kinds(np.array(values, np.float32)).tolist() == [1, 1, 2, 4, 8]
    assert kinds(np.array([1j, complex(NAN, 0.0), complex(INF, 0.0)])).tolist() == [1, 2, 4]


@pytest.mark.parametrize("factor", [0.0, -1.0, NAN, INF, "3", None, True])
def test_factors_that_are_none(factor: Any) -> None:
    with pytest.raises(RepfuseError, match=r"the factor is .*: give a"):
        one([1.0], [1.0], [1.0], factor=factor)


def test_complex_outputs() -> None:
    values = np.array([3 + 4j, 1j], np.complex64)
    assert one(values.astype(complex), values, values).passed
    error = one(values.astype(complex), values, values + np.complex64(0.5j))
    assert error.max_abs == 0.5
    assert error.max_rel == pytest.approx(0.1)
    assert not error.passed


def test_scalars_and_empty_outputs() -> None:
    assert one(np.array(1.0), np.array(1.0), np.array(1.0)).passed
    empty = one(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros((0, 4)))
    assert empty.passed
    assert empty.compared == 0


def test_table_and_json() -> None:
    good, bad = np.array([[1.0, 2.0]]), np.array([[1.0, NAN]])
    exact = [Output("scores", good), Output("boxes", good)]
    comparison = compare(exact, exact, [Output("scores", good), Output("boxes", bad)])
    lines = str(comparison).splitlines()
    assert lines[0] == "not equivalent: 1 of 2 outputs differ"
    assert lines[1].split()[:3] == ["output", "shape", "dtype"]
    assert lines[2].startswith("scores  1x2    float64  0.00e+00")
    assert lines[2].endswith("ok")
    assert lines[3].endswith("FAILS: 1 of 2 values are NaN or Inf in only one of the two")
    assert comparison.worst is comparison.outputs[1]

    report = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert report["passed"] is False
    assert report["outputs"][0]["snr_db"] is None
    assert report["outputs"][1]["max_abs"] is None
    assert report["outputs"][0]["shape"] == [1, 2]

    passed = str(Comparison(comparison.outputs[:1]))
    assert passed.startswith("equivalent: no further from the float64 answer")
