"""Ctrl-C in the middle of anything: the model, the process and the next fusion are as before."""

from __future__ import annotations

import builtins
import copy
import gc
import random
import signal
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repfuse
from repfuse.interruption import OPEN, undone, uninterrupted, whole
from tests.cli.test_onnx_command import block
from tests.interrupting import Events, interrupt
from tests.numerics import randomize
from tests.test_bad_models import snapshot

POINTS = 16  # events of each kind, drawn with a seed

# In a generator that is thrown away, Python prints an interruption, and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Branches(nn.Module):
    """Layers, a parameter and a counter; a method that is written again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.point, self.skip = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            pass
        self.calls.append(1)
        total: Tensor = self.norm(self.conv(x)) + self.point(x) + self.skip(x)
        return torch.relu(total)


class Rich(nn.Module):
    """Branches, a sum with a factor, a shared layer and a hook, in train mode in part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = Branches(), nn.Conv2d(4, 4, 1)
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.also = self.shared
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.last[0].register_forward_hook(lambda *_: None)

    def features(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.shared(x) * self.scale + x
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.also(self.features(torch.relu(self.first(x))))))
        return result


def rich() -> Rich:
    model = Rich()
    randomize(model)
    for parameter in model.first.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.last.eval()
    return model


def process() -> list[Any]:
    """What is one for the whole process or thread, and what a trace replaces."""
    found: list[Any] = [nn.Module.__call__, nn.Module.__getattr__, builtins.isinstance]
    found += [mode.__enter__ for mode in (torch.no_grad, torch.enable_grad, torch.autocast)]
    found += [torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_autocast_enabled]
    found += [fx._symbolic_trace._is_fx_tracing_flag]
    found += [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()]
    found += [gc.isenabled(), sys.getrecursionlimit(), threading.active_count(), len(OPEN.undos)]
    found += [torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled()]
    return found + [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def points(events: Events) -> list[int]:
    """Some events of the run, and some of those in which a step is taken or undone."""
    draw = random.Random(0)
    steps = sorted(set(events.steps.values()))
    anywhere = draw.sample(range(1, events.count), min(POINTS, events.count - 1))
    return anywhere + draw.sample(steps, min(2 * POINTS, len(steps)))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_fusion_changes_nothing() -> None:
    model = rich()
    expected = repfuse.fuse(model).state_dict()
    events = Events()
    events.run(lambda: repfuse.fuse(model))
    assert events.steps
    before, around = snapshot(model), process()
    for at in points(events):
        interrupt(lambda: repfuse.fuse(model), at)
        assert process() == around, at
        assert snapshot(model) == before, at
        if at % 4 == 0:
            assert same(repfuse.fuse(model).state_dict(), expected), at


def test_interrupted_in_place_the_model_computes_the_same() -> None:
    model, x = rich(), torch.randn(2, 4, 8, 8)
    expected = copy.deepcopy(model).eval()(x)
    layers = repfuse.fuse(model).state_dict()
    events, fused = Events(), copy.deepcopy(model)
    events.run(lambda: repfuse.fuse(fused, inplace=True))
    around = process()
    for at in points(events)[::2]:
        changed = copy.deepcopy(model)
        before = snapshot(changed)
        interrupt(lambda changed=changed: repfuse.fuse(changed, inplace=True), at)  # type: ignore[misc]
        assert process() == around, at
        if snapshot(changed) != before:
            assert not any(module.training for module in changed.modules())
            torch.testing.assert_close(changed(x), expected)
        again = repfuse.fuse(changed, inplace=True).state_dict()
        assert list(again) == list(layers), at


def test_an_interrupted_fusion_of_a_file_in_memory_changes_nothing() -> None:
    model = block()
    before = model.SerializeToString(deterministic=True)
    expected = repfuse.fuse(model).SerializeToString(deterministic=True)
    events = Events()
    events.run(lambda: repfuse.fuse(model))
    around = process()
    for at in points(events)[:POINTS]:
        interrupt(lambda: repfuse.fuse(model), at)
        assert process() == around, at
        assert model.SerializeToString(deterministic=True) == before, at
    assert repfuse.fuse(model).SerializeToString(deterministic=True) == expected


def test_what_cannot_be_copied_is_as_it_was() -> None:
    """It is traced itself, and fused in place."""
    model = rich()
    model.lock = threading.Lock()  # type: ignore[assignment]
    events, other = Events(), rich()
    other.lock = threading.Lock()  # type: ignore[assignment]
    events.run(lambda: repfuse.fuse(other, inplace=True))
    before = snapshot(model)
    early = [at for at in sorted(points(events)) if at < events.count // 3]
    assert early
    for at in early:
        interrupt(lambda: repfuse.fuse(model, inplace=True), at)
        assert snapshot(model) == before, at


def test_an_interrupted_verification_changes_nothing() -> None:
    model = rich()
    fused, x = repfuse.fuse(model), torch.randn(2, 4, 8, 8)
    events = Events()
    events.run(lambda: repfuse.verify(model, fused, x))
    torch.manual_seed(3)
    before, around = snapshot(model), process()
    for at in points(events)[::2]:
        interrupt(lambda: repfuse.verify(model, fused, x), at)
        assert process() == around, at
        assert snapshot(model) == before, at  # the default dtype and the generators, too


def test_an_interrupted_library_is_an_interruption() -> None:
    """torch.fx makes an AssertionError of it where its own steps are interrupted."""

    @whole
    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        work()
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:  # the caller handles one already

        @whole
        def other() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            other()


def test_signals_wait_for_the_end_of_a_step() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("the step")
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_changed_is_put_back_in_turn() -> None:
    log: list[str] = []

    @whole
    def work() -> None:
        with undone(lambda: log.append("outer")):
            inner = undone(lambda: log.append("inner"))
            inner.__enter__()  # and never left
            raise ValueError

    with pytest.raises(ValueError):
        work()
    assert log == ["inner", "outer"]
    assert not OPEN.undos
