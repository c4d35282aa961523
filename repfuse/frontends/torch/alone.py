"""What torch has once for the whole process, or for the thread: used by one at a time, put back.

A trace replaces methods of nn.Module for all threads. One thread traces at a time; what others do
meanwhile is none of the trace's business, which the replacements have to see to.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from repfuse.interruption import undone, uninterrupted

__all__ = [
    "MODES",
    "QUESTIONS",
    "alone",
    "evaluated",
    "kept_modes",
    "own_modes",
    "single_thread",
    "usual_methods",
]

TRACING, PATCHER = fx._symbolic_trace, "CURRENT_PATCHER"
MODES: tuple[Any, ...] = (
    torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode, torch.autocast,
)  # fmt: skip
# What code may ask about what torch is doing: the answer may be another one at another time.
QUESTIONS: tuple[tuple[Any, str], ...] = tuple(
    (owner, name)
    for owner, names in (
        (torch, (
            "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled",
            "is_autocast_cpu_enabled", "is_autocast_cache_enabled", "is_autocast_ipu_enabled",
            "is_autocast_xla_enabled", "get_autocast_dtype", "get_autocast_cpu_dtype",
            "get_autocast_gpu_dtype", "get_autocast_ipu_dtype", "get_autocast_xla_dtype",
            "is_anomaly_enabled", "is_anomaly_check_nan_enabled",
            "are_deterministic_algorithms_enabled", "get_deterministic_debug_mode",
            "is_deterministic_algorithms_warn_only_enabled", "get_default_dtype",
            "get_default_device", "get_float32_matmul_precision",
        )),
        (torch._C, (
            "_get_tracing_state", "_is_tracing", "_is_any_autocast_enabled",
            "_is_fwd_grad_enabled", "_is_torch_function_mode_enabled",
        )),
        (torch.jit, ("is_tracing",)),
        (torch.compiler, (
            "is_compiling", "is_exporting", "is_dynamo_compiling", "_is_non_strict_tracing",
        )),
        (torch.onnx, ("is_in_onnx_export",)),
        (torch.cuda, ("is_current_stream_capturing",)),
        (torch.autograd, ("is_multithreading_enabled", "is_view_replay_enabled")),
        (fx._symbolic_trace, ("is_fx_tracing", "is_fx_symbolic_tracing")),
        (torch.utils._python_dispatch, ("is_in_torch_dispatch_mode",)),
    )
    for name in names
    if hasattr(owner, name)
)  # fmt: skip
REPLACED: tuple[tuple[Any, str], ...] = (
    (nn.Module, "__call__"),
    (nn.Module, "__getattr__"),
    (builtins, "isinstance"),
    (builtins, "callable"),
    (contextlib.suppress, "__enter__"),
    (contextlib.suppress, "__exit__"),
    *((mode, "__enter__") for mode in MODES),
    *QUESTIONS,
    *((TRACING, name) for name in (PATCHER, "_is_fx_tracing_flag") if hasattr(TRACING, name)),
)
WAIT = 0.05  # seconds for which Ctrl-C may have to wait, too
AUTOCAST = ("cpu", "cuda")


class _Turn:
    """Whose turn it is to trace, and what the process was like before."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder: object = None
        self.thread = 0
        self.before: list[Any] = []

    def take(self, holder: object) -> None:
        while True:
            with uninterrupted():
                if self.lock.acquire(timeout=WAIT):
                    self.before = [getattr(owner, name) for owner, name in REPLACED]
                    self.holder, self.thread = holder, threading.get_ident()
                    return

    def leave(self, holder: object) -> None:
        if self.holder is holder:
            self.put_back()
            self.holder, self.thread = None, 0
            self.lock.release()

    def put_back(self) -> None:
        patcher = getattr(TRACING, PATCHER, None)
        if patcher is not None and not any(patcher is value for value in self.before):
            patcher.revert_all_patches()
        for (owner, name), value in zip(REPLACED, self.before, strict=True):
            if getattr(owner, name) is not value:
                setattr(owner, name, value)

    def renew(self) -> None:
        """In a forked process nobody else traces, whatever was going on in the other one."""
        if self.holder is not None and self.thread != threading.get_ident():
            self.put_back()
            self.__init__()  # type: ignore[misc]


TURN = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TURN.renew)


@contextmanager
def alone() -> Iterator[None]:
    """No other thread is in such a block, and what a trace replaces is as before afterwards."""
    if TURN.thread == threading.get_ident():  # traced code that fuses something
        yield
        return
    holder = object()
    with undone(lambda: TURN.leave(holder)):
        TURN.take(holder)
        yield


def usual_methods() -> tuple[Any, Any]:
    """How modules are called and their attributes looked up where nothing is traced."""
    call, lookup, *_ = TURN.before
    return call, lookup


@contextmanager
def kept_modes() -> Iterator[None]:
    """The thread has its modes afterwards: whether there are gradients, autocast, and so on."""
    grad = torch.is_grad_enabled()
    casts = [torch.is_autocast_enabled(device) for device in AUTOCAST]
    watching = torch._C._len_torch_dispatch_stack()
    modes = torch.overrides._get_current_function_mode_stack()

    def put_back() -> None:
        if torch.overrides._get_current_function_mode_stack() != modes:
            while torch._C._len_torch_function_stack():
                torch.overrides._pop_mode()
            for mode in modes:
                torch.overrides._push_mode(mode)
        while torch._C._len_torch_dispatch_stack() > watching:
            torch.utils._python_dispatch._pop_mode()
        for device, cast in zip(AUTOCAST, casts, strict=True):
            torch.set_autocast_enabled(device, cast)
        torch._C._set_grad_enabled(grad)

    with undone(put_back):
        yield


@contextmanager
def own_modes() -> Iterator[None]:
    """Without the modes of the caller, which has them afterwards.

    Weights that are made in inference mode could never be trained or loaded into; those that are
    computed under autocast would be rounded; a default device is not that of each new tensor here.
    """
    inference = torch.is_inference_mode_enabled()
    with kept_modes(), torch.inference_mode(False) if inference else nullcontext():
        while torch._C._len_torch_function_stack():
            torch.overrides._pop_mode()
        for device in AUTOCAST:
            torch.set_autocast_enabled(device, False)
        yield


@contextmanager
def evaluated(model: nn.Module, stays: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """In eval mode, and afterwards in its own modes, unless it stays so."""
    modes = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        if not stays():
            for module, training in modes:
                module.training = training

    with undone(put_back):
        model.eval()
        yield


class _Threads:
    """How many threads torch computes with: a number of the process, of which each thread has its
    own copy from its first computation on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: list[object] = []
        self.process = 0

    def one(self, holder: object) -> None:
        with uninterrupted(), self.lock:
            if not self.inside:
                self.process = _elsewhere(torch.get_num_threads)
            self.inside.append(holder)
            torch.set_num_threads(1)

    def put_back(self, holder: object, own: int) -> None:
        with uninterrupted(), self.lock:
            if holder not in self.inside:
                return
            self.inside.remove(holder)
            torch.set_num_threads(own)
            process = 1 if self.inside else self.process
            if process != own:
                _elsewhere(lambda: torch.set_num_threads(process))


THREADS = _Threads()


@contextmanager
def single_thread() -> Iterator[None]:
    """Many small operations: waking threads for each would take longer than running it."""
    own, holder = torch.get_num_threads(), object()
    with undone(lambda: THREADS.put_back(holder, own)):
        THREADS.one(holder)
        yield


def _elsewhere(run: Callable[[], Any]) -> Any:
    """What a new thread gets, which has no number of its own yet."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]
