"""What rounding may explain: distances between outputs and the tolerance of a comparison.

With the float64 *answer*, the *reference* in its own precision and the *candidate* in the same,

    |candidate - answer|  <=  FACTOR * |reference - answer| + FLOOR_ULPS ulps

must hold, where |.| is the largest absolute difference and an ulp is the spacing of the output's
precision at the output's largest value. There is no fixed rtol: a deep network may be as inexact
as it already was, a shallow one may not.

FACTOR is 4: both models round about as often, so their errors are two draws from about the same
distribution, and the ratio of the largest of a thousand stayed below 2 on timm networks. The room
is for outputs of one or two values, where the largest error is a matter of luck.
FLOOR_ULPS is 4: an output that the reference gets exactly right (an identity, a maximum) leaves
no error to multiply, while a candidate may round its weight, its bias, its product and its sum,
half an ulp each, or twice that where the sum is larger than its result.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["FACTOR", "SPACING", "distance", "largest", "rounded", "snr_db", "tolerance", "wide"]

FACTOR = 4.0
FLOOR_ULPS = 4.0

Values: TypeAlias = npt.NDArray[Any]

# The spacing of the numbers above 1, and the smallest positive number.
SPACING = {
    "bfloat16": (2.0**-7, 2.0**-133),
    "float16": (2.0**-10, 2.0**-24),
    "float32": (2.0**-23, 2.0**-149),
    "float64": (2.0**-52, 2.0**-1074),
    "complex32": (2.0**-10, 2.0**-24),
    "complex64": (2.0**-23, 2.0**-149),
    "complex128": (2.0**-52, 2.0**-1074),
}


def tolerance(original_error: float, peak: float, precision: str, factor: float = FACTOR) -> float:
    """How far a candidate may be from the answer, whose largest absolute value is `peak`."""
    spacing, smallest = SPACING[precision]
    return factor * original_error + FLOOR_ULPS * max(spacing * peak, smallest)


def distance(values: Values, answer: Values) -> float:
    """The largest absolute difference where both are finite; infinite for different shapes."""
    if values.shape != answer.shape:
        return float("inf")
    both = np.isfinite(values) & np.isfinite(answer)
    return largest(wide(values)[both] - wide(answer)[both])


def rounded(values: npt.NDArray[np.float64], precision: str) -> Values:
    """float64 values rounded once; bfloat16, which NumPy lacks, as the float32 that rounds to it.

    On the way to bfloat16 the step to float32 rounds to odd, after which a second rounding does
    no harm.
    """
    if precision != "bfloat16":
        return values.astype(precision)
    single = values.astype(np.float32)
    exact = single.astype(np.float64) == values
    away = np.abs(single.astype(np.float64)) > np.abs(values)
    single = np.where(away, np.nextafter(single, np.float32(0.0)), single)
    bits = np.ascontiguousarray(single).view(np.uint32) | np.where(exact, 0, 1).astype(np.uint32)
    return bits.view(np.float32)


def wide(values: Values) -> Values:
    """The values in float64, or complex128."""
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def largest(values: Values) -> float:
    """The largest absolute value; 0 without any."""
    return float(np.abs(values).max(initial=0.0))


def snr_db(answer: Values, difference: Values) -> float:
    """Power of the answer over the power of the difference, in dB; infinite without difference."""
    signal, noise = largest(answer), largest(difference)
    if not noise:
        return float("inf")
    if not signal or not np.isfinite(signal) or not np.isfinite(noise):
        return float("-inf")
    # Squares of the values themselves can overflow, or vanish.
    shape = np.square(np.abs(answer) / signal).sum() / np.square(difference / noise).sum()
    return float(20.0 * np.log10(signal / noise) + 10.0 * np.log10(shape))
