"""The pytest fixture `repfuse_equivalent`; an entry point makes it known to pytest.

Loading it costs nothing: torch, onnx and numpy are imported by the first comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["repfuse_equivalent"]


@pytest.fixture
def repfuse_equivalent() -> Callable[..., None]:
    """A function that fails the test, with the table of errors, unless two models are equal.

    `repfuse_equivalent(reference, candidate, inputs=None, **options)` takes what
    `repfuse.assert_equivalent` takes: two ONNX models or paths, or two modules and their inputs.
    """
    return _check


def _check(reference: Any, candidate: Any, inputs: Any = None, **options: Any) -> None:
    __tracebackhide__ = True
    import repfuse

    table = ""
    try:
        repfuse.assert_equivalent(reference, candidate, inputs, **options)
    except repfuse.NotEquivalentError as error:
        table = str(error)
    if table:  # raised here, the traceback ends at the user's own line
        raise repfuse.NotEquivalentError(table)
