"""Several threads at once: each gets what it would get alone, and nobody notices the others."""

from __future__ import annotations

import copy
import cProfile
import gc
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import repfuse
from repfuse.collector import collector_paused
from repfuse.frontends.torch.alone import single_thread
from tests.cli.test_onnx_command import block
from tests.numerics import randomize
from tests.test_bad_models import snapshot
from tests.test_interruption import process, rich, same

THREADS = 4
PATIENCE = 60.0  # seconds, after which a thread that waits gives up


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the works return, each in a thread of its own, all begun at the same moment."""
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        ready.wait(PATIENCE)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


class Computed(nn.Module):
    """A weight that is computed whenever it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4, 3, 3))
        self.rows, self.columns = nn.Parameter(torch.rand(36, 2)), nn.Parameter(torch.rand(2, 4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (self.rows @ self.columns).reshape(4, 4, 3, 3)
        result: Tensor = self.norm(F.conv2d(x, weight, padding=1))
        return result


class Meeting(nn.Module):
    """Its trace waits until others have done something in the middle of it."""

    begun, done, traced_in = threading.Event(), threading.Event(), 0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.scale
        if self.traced_in == threading.get_ident():
            self.begun.set()
            self.done.wait(PATIENCE)
        result: Tensor = self.norm(y)
        return result

    @classmethod
    def while_it_is_traced(cls, model: nn.Module, work: Callable[[], Any]) -> tuple[nn.Module, Any]:
        """The fused model, and what another thread got from its work meanwhile."""
        cls.begun.clear()
        cls.done.clear()

        def other() -> Any:
            assert cls.begun.wait(PATIENCE)
            try:
                return work()
            finally:
                cls.done.set()

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other)
            cls.traced_in = threading.get_ident()
            try:
                fused = repfuse.fuse(model)
            finally:
                cls.traced_in = 0
            return fused, waiting.result(PATIENCE)


def layers_of(model: nn.Module) -> dict[str, Tensor]:
    return repfuse.fuse(model).state_dict()


def test_one_model_in_several_threads() -> None:
    model = rich()
    expected, before, around = layers_of(model), snapshot(model), process()
    for found in at_once([lambda: layers_of(model)] * THREADS):
        assert same(found, expected)
    assert snapshot(model) == before
    assert process() == around


def test_several_models_in_several_threads() -> None:
    models = [rich(), nn.Sequential(Computed(), Computed()).eval(), rich()]
    expected = [layers_of(model) for model in models]
    before = [snapshot(model) for model in models]
    found = at_once([lambda model=model: layers_of(model) for model in models])  # type: ignore[misc]
    assert all(map(same, found, expected))
    assert [snapshot(model) for model in models] == before


def test_one_plan_in_several_threads() -> None:
    model = rich()
    expected, plan = layers_of(model), repfuse.plan(model)
    for found in at_once([lambda: plan.apply().state_dict()] * THREADS):
        assert same(found, expected)
    texts = at_once([lambda: str(repfuse.plan(model))] * THREADS)
    assert set(texts) == {str(plan)}


def test_models_run_as_ever_while_one_is_traced() -> None:
    """Also the very model, whose parameters the traced copy shares, and torch's own layers."""
    model = nn.Sequential(Meeting(), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    others = [copy.deepcopy(model), nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)).eval()]
    x = torch.rand(2, 4, 8, 8)
    expected = [module(x) for module in (model, *others)]
    alone = layers_of(model)

    def work() -> list[Any]:
        found: list[Any] = [module(x) for module in (model, *others)]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found += [module(x) for module in (model, *others)]
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        found.append(model[0].scale)
        return found

    fused, (*outputs, scale) = Meeting.while_it_is_traced(model, work)
    assert scale is model[0].scale
    for output, wanted in zip(outputs, expected * 2, strict=True):
        assert type(output) is Tensor
        assert torch.equal(output, wanted)
    assert same(fused.state_dict(), alone)  # what the others entered is no business of the trace


@pytest.mark.parametrize("kind", ["torch", "Python"])
def test_random_numbers_that_others_draw_are_theirs(kind: str) -> None:
    model, draw = Meeting().eval(), DRAW[kind]
    alone = layers_of(model)
    SEED[kind](5)
    expected = [draw(), draw(), draw()]
    SEED[kind](5)
    fused, first = Meeting.while_it_is_traced(model, draw)
    assert [first, draw(), draw()] == expected
    assert same(fused.state_dict(), alone)
    assert not any(name.startswith("norm") for name in alone)


DRAW: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "Python": random.random,
}
SEED: dict[str, Callable[[int], Any]] = {"torch": torch.manual_seed, "Python": random.seed}


class Draws(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        factor = 1.0 if DRAW[self.kind]() < 0.5 else 2.0
        result: Tensor = self.norm(self.conv(x * factor)) * factor
        return result


@pytest.mark.parametrize("profiler", [None, cProfile.Profile])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("kind", ["torch", "Python"])
def test_what_the_model_itself_draws_counts_in_any_thread(
    kind: str, others: bool, profiler: type[cProfile.Profile] | None
) -> None:
    model, before = Draws(kind).eval(), (torch.get_rng_state().tolist(), random.getstate())
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(PATIENCE,))
    if others:
        thread.start()
    try:
        with profiler() if profiler else nullcontext() as running:
            fused = repfuse.fuse(model)
            now: Any = sys.getprofile()
            assert now is running
    finally:
        stop.set()
    assert (torch.get_rng_state().tolist(), random.getstate()) == before
    x = torch.rand(1, 4, 6, 6)
    for seed in range(8):  # either factor comes
        SEED[kind](seed)
        expected = model(x)
        SEED[kind](seed)
        torch.testing.assert_close(fused(x), expected)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "grad": lambda: torch.set_grad_enabled(True),
}


def modes() -> list[Any]:
    found: list[Any] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    found += [torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")]
    return [*found, torch.get_default_device(), torch.get_num_threads()]


def test_the_modes_of_a_thread_change_no_weight_and_stay() -> None:
    model = nn.Sequential(rich(), nn.Conv2d(4, 4, 1), Computed())
    expected = layers_of(model)

    def work(name: str) -> dict[str, Tensor]:
        with MODES[name]():
            before = modes()
            fused = repfuse.fuse(model)
            assert modes() == before, name
        return fused.state_dict()

    works = [lambda name=name: work(name) for name in MODES]
    for name, found in zip(MODES, at_once(works), strict=True):
        assert same(found, expected), name
        assert not any(tensor.is_inference() for tensor in found.values()), name


def test_defaults_of_the_process_change_no_weight() -> None:
    model = nn.Sequential(rich(), nn.Conv2d(4, 4, 1), Computed())
    expected = layers_of(model)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert same(layers_of(model), expected)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def overlapping(
    context: Callable[[], AbstractContextManager[Any]], inside: Callable[[], Any]
) -> Any:
    """One thread is in the context, another one enters, the first leaves, then the other one."""
    entered, left = threading.Event(), threading.Event()

    def other() -> Any:
        with context():
            entered.set()
            assert left.wait(PATIENCE)
            return inside()

    with ThreadPoolExecutor(1) as pool:
        with context():
            waiting = pool.submit(other)
            assert entered.wait(PATIENCE)
        left.set()
        return waiting.result(PATIENCE)


def test_the_collector_runs_again_after_the_last_pause() -> None:
    assert overlapping(collector_paused, gc.isenabled) is False
    assert gc.isenabled()


def test_the_number_of_threads_is_as_before_after_the_last_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert overlapping(single_thread, torch.get_num_threads) == 1
        assert torch.get_num_threads() == 3
        assert at_once([torch.get_num_threads]) == [3]
    finally:
        torch.set_num_threads(before)


def test_a_process_that_is_forked_in_a_trace_can_fuse() -> None:
    script = (
        "import os, threading\n"
        "import torch\n"
        "from torch import nn\n"
        "import repfuse\n"
        "call, begun, done = nn.Module.__call__, threading.Event(), threading.Event()\n"
        "class Waits(nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        if not begun.is_set():\n"
        "            begun.set(); done.wait(60)\n"
        "        return super().forward(x)\n"
        "model = nn.Sequential(Waits(2, 2, 1), nn.BatchNorm2d(2)).eval()\n"
        "thread = threading.Thread(target=repfuse.fuse, args=(model,)); thread.start()\n"
        "begun.wait(60)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert nn.Module.__call__ is call\n"
        "    repfuse.fuse(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))\n"
        "    os._exit(7)\n"
        "done.set(); thread.join()\n"
        "assert nn.Module.__call__ is call\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 7, done.stderr


class InThreads(nn.Module):
    """Branches in threads of their own: layers, or functions of the input."""

    def __init__(self, layers: bool) -> None:
        super().__init__()
        self.layers = layers
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.left, self.right) if self.layers else (torch.neg, torch.abs)
        with ThreadPoolExecutor(2) as pool:
            left, right = pool.map(lambda branch: branch(x), branches)
        result: Tensor = self.norm(left + right)
        return result


@pytest.mark.parametrize("layers", [False, True])
def test_what_computes_in_threads_stays_as_it_is(layers: bool) -> None:
    model = nn.Sequential(InThreads(layers), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    randomize(model)
    x, fused = torch.rand(1, 4, 6, 6), repfuse.fuse(model)
    torch.testing.assert_close(fused(x), model.eval()(x))
    assert isinstance(fused.get_submodule("3"), nn.Identity)
    why = "NotImplementedError: the method computes in a thread of its own"
    assert repfuse.plan(model).report.untraced == {"0": why}


def test_an_error_in_a_trace_lets_the_next_one_begin() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    call = nn.Module.__call__
    with pytest.raises(KeyboardInterrupt):
        repfuse.fuse(Raises())
    assert nn.Module.__call__ is call
    assert not fx._symbolic_trace._is_fx_tracing_flag
    model = rich()
    assert same(at_once([lambda: layers_of(model)])[0], layers_of(model))


def test_one_file_in_memory_in_several_threads() -> None:
    model = block()
    before = model.SerializeToString(deterministic=True)

    def work() -> bytes:
        return bytes(repfuse.fuse(model).SerializeToString(deterministic=True))

    expected = work()
    assert set(at_once([work] * THREADS)) == {expected}
    plan = repfuse.plan(model)
    again = [lambda: plan.apply().SerializeToString(deterministic=True)] * THREADS
    assert set(at_once(again)) == {expected}
    assert model.SerializeToString(deterministic=True) == before


def test_several_threads_verify() -> None:
    model, x = rich(), torch.randn(2, 4, 8, 8)
    fused, before = repfuse.fuse(model), snapshot(model)
    expected = str(repfuse.verify(model, fused, x))
    assert snapshot(model) == before
    found = at_once([lambda: str(repfuse.verify(model, fused, x))] * THREADS)
    assert set(found) == {expected}
    assert snapshot(model) == before


def test_randomized_models_differ() -> None:
    """What is compared above is no constant."""
    assert not same(layers_of(rich()), layers_of(randomize(rich())))
