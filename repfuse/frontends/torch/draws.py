"""The random generators of torch, Python and NumPy, as they were before a trace."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from repfuse.interruption import undone

__all__ = ["Draws"]

GENERATOR: Any = getattr(random.random, "__self__", None)


class Draws:
    """Whether the trace draws random numbers. Others may draw at the same time.

    What torch does in this thread is watched where there are other threads. Where Python's
    generator moved, `unsure` tells that it may have been another one; closely, each call in this
    thread is looked at, which takes time. Of NumPy's, anybody's draws count.
    """

    def __init__(self, earlier: Draws | None = None) -> None:
        """earlier: those of a trace of the same model that was unsure."""
        self.before = torch.get_rng_state(), random.getstate(), np.random.get_state()
        if earlier is not None:
            self.before = earlier.before
        self.seed = torch.initial_seed()
        self.mode = _Noting() if threading.active_count() > 1 else None
        self.closely = earlier is not None
        self.unsure = False
        self._python = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        with self._looking() if self.closely else nullcontext(), self.mode or nullcontext():
            yield

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Look at each call. Where somebody's profiler does so, any draw counts."""
        if sys.getprofile() is not None:
            self._python = True
            yield
            return
        with undone(lambda: sys.setprofile(None)):
            sys.setprofile(self._look)
            yield

    def _look(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and getattr(argument, "__self__", None) is GENERATOR:
            self._python = True

    def restore(self) -> bool:
        """Put the generators back that were used; whether any was."""
        state, python, numpy = self.before
        drew = not torch.equal(torch.get_rng_state(), state)
        if self.mode is not None:
            drew &= self.mode.drew or torch.initial_seed() != self.seed
        if drew:
            torch.set_rng_state(state)
        if random.getstate() != python and (self._python or not self.closely):
            self.unsure = self.mode is not None and not self.closely
            if not self.unsure:
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
