"""The random generators of torch, Python and NumPy, as they were before a trace."""

from __future__ import annotations

import random
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Draws"]


class Draws:
    """Whether the trace draws random numbers. Others may draw at the same time: what torch does
    in this thread is watched where there are other ones; for Python and NumPy anybody's count."""

    def __init__(self) -> None:
        self.before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self.seed = torch.initial_seed()
        self.mode = _Noting() if threading.active_count() > 1 else None

    def watched(self) -> AbstractContextManager[Any]:
        return self.mode or nullcontext()

    def restore(self) -> bool:
        """Put the generators back that were used; whether any was."""
        state, python, numpy = self.before
        drew = not torch.equal(torch.get_rng_state(), state)
        if self.mode is not None:
            drew &= self.mode.drew or torch.initial_seed() != self.seed
        if drew:
            torch.set_rng_state(state)
        if random.getstate() != python:
            random.setstate(python)
            drew = True
        now: Any = np.random.get_state()
        if any(not np.array_equal(a, b) for a, b in zip(now, numpy, strict=True)):
            np.random.set_state(numpy)
            drew = True
        return drew


class _Noting(TorchDispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.drew |= torch.Tag.nondeterministic_seeded in function.tags
        return function(*args, **(kwargs or {}))
