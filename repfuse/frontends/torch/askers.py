"""Whose code runs, and which instruction of it: what an object can know about who asks it."""

from __future__ import annotations

import dis
import sys
from functools import cache
from types import CodeType, FrameType

__all__ = ["from_torch", "from_user", "instruction_of"]

NEITHER = ("_pydev", "pydev", "debugpy", "IPython")


def from_torch(frame: FrameType) -> bool:
    """Whether a frame belongs to torch or to this tracer."""
    home = str(frame.f_globals.get("__name__", ""))
    return home.startswith(("torch.", "repfuse.")) or home == "torch"


def from_user(frame: FrameType) -> bool:
    """Whether a frame belongs to the model: not to torch, Python itself, or a debugger."""
    return _is_users(str(frame.f_globals.get("__name__", "")))


@cache
def _is_users(home: str) -> bool:
    first = home.partition(".")[0]
    known = first in ("torch", "repfuse") or home.startswith(NEITHER)
    return not known and (first == "__main__" or first not in sys.stdlib_module_names)


def instruction_of(frame: FrameType) -> str:
    """The name of the instruction that a frame is at."""
    return _instructions(frame.f_code).get(frame.f_lasti, "")


@cache
def _instructions(code: CodeType) -> dict[int, str]:
    return {step.offset: step.opname for step in dis.get_instructions(code)}
