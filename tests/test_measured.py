"""The target "measured": the quicker form is taken, times are kept, and nothing can break it."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import repfuse
from repfuse.cli.onnx import main
from repfuse.cost import Cost, target_named
from repfuse.frontends.onnx.timing import Timer as OnnxTimer
from repfuse.frontends.torch.timing import Timer as TorchTimer
from repfuse.graph import Concat, Sum
from repfuse.measured import LONGEST, UNIT, Stopwatch, Work, quickest, work_of
from repfuse.operators import Affine, Pool
from repfuse.timings import Timings, cache_file
from tests.builders import conv
from tests.models.measure import exported

FRONTENDS = ("torch", "onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "repfuse" / "timings.json"


class Branches(nn.Module):
    """Two dilations of a 3x3 conv: one 5x5 has more MACs."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1)
        self.far = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.near(x) + self.far(x))


def fake(
    monkeypatch: pytest.MonkeyPatch, frontend: str, seconds: Callable[[Work], Any]
) -> list[Work]:
    """Put a timer of the test's own in place of the frontend's; returns what it is asked for."""
    asked: list[Work] = []

    class Fake:
        machine = "a machine"

        def __init__(self, *model: Any) -> None: ...

        def __call__(self, work: Work) -> Any:
            asked.append(work)
            return seconds(work)

    home = importlib.import_module(f"repfuse.frontends.{frontend}.plan")
    monkeypatch.setattr(home, "Timer", Fake)
    return asked


def model_of(frontend: str, model: nn.Module, x: Tensor) -> Any:
    return model if frontend == "torch" else exported(model, x, "fixed")


def plan_of(frontend: str, model: nn.Module | None = None) -> Any:
    x, built = torch.randn(1, 16, 12, 12), (model or Branches()).eval()
    return repfuse.plan(model_of(frontend, built, x), target="measured", shapes=x.shape)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("large", "regions"), [(1e-4, 1), (1.7e-3, 1), (2.05e-3, 0), (2.3e-3, 0), (5e-3, 0)]
)
def test_the_quicker_form_is_taken(
    monkeypatch: pytest.MonkeyPatch, frontend: str, large: float, regions: int
) -> None:
    """Two 3x3 and an addition take 2.1 ms; more MACs have to save a tenth of that."""

    def seconds(work: Work) -> float:
        return {"sum": 1e-4}.get(work.kind, large if work.kernel_size == (5, 5) else 1e-3)

    asked = fake(monkeypatch, frontend, seconds)
    report = plan_of(frontend).report
    assert len(report.regions) == regions
    assert {work.kernel_size for work in asked} >= {(5, 5), (3, 3)}
    if regions:
        (region,) = report.regions
        assert region.milliseconds_before == pytest.approx(2.1)
        assert region.milliseconds_after == pytest.approx(1e3 * large)
        assert f"2.1 -> {1e3 * large:.3g} ms" in " ".join(str(report).split())
    else:
        assert "times the price" in report.kept[0].reason


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_each_work_is_timed_once_and_what_has_no_choice_is_not(
    monkeypatch: pytest.MonkeyPatch, frontend: str
) -> None:
    asked = fake(monkeypatch, frontend, lambda work: 1e-3)
    plan_of(frontend, nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1)))
    assert asked == []
    plan_of(frontend)
    assert len(asked) == len(set(asked))
    plan_of(frontend)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("answer", [None, 0.0, float("nan"), RuntimeError("no such operator")])
def test_what_cannot_be_timed_has_the_price_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, frontend: str, answer: Any
) -> None:
    def seconds(work: Work) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    fake(monkeypatch, frontend, seconds)
    shape = (1, 16, 12, 12)
    expected = repfuse.plan(
        model_of(
            frontend, nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)), torch.randn(shape)
        ),
        shapes=shape,
    ).report
    found = plan_of(frontend, nn.Sequential(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1))).report
    assert [region.after for region in found.regions] == [r.after for r in expected.regions]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_real_operators_are_timed(frontend: str, cache: Path) -> None:
    report = plan_of(frontend, nn.Sequential(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4))).report
    (region,) = report.regions
    assert region.milliseconds_before > 0
    assert region.milliseconds_after > 0
    (times,) = json.loads(cache.read_text()).values()
    assert {work.split("'")[1] for work in times} == {"conv", "affine"}
    assert all(0 < time < 1 for time in times.values())


def _count(calls: Counter[str], module: nn.Module, *_: Any) -> None:
    calls[type(module).__name__] += 1


def test_hooks_for_all_modules_are_not_for_what_is_timed() -> None:
    """They see what the same plan without any timing shows them."""
    seen: dict[str, Counter[str]] = {}
    for target in ("cpu", "measured"):
        calls = Counter[str]()
        hook = register_module_forward_hook(partial(_count, calls))
        try:
            repfuse.plan(Branches().eval(), target=target, shapes=(1, 16, 9, 9))
        finally:
            hook.remove()
        seen[target] = calls
    assert seen["measured"] == seen["cpu"]


def test_without_onnx_runtime_a_file_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(repfuse.RepfuseError) as caught:
        plan_of("onnx")
    assert str(caught.value) == (
        'onnxruntime is not installed: pip install "repfuse[onnx]", or choose another target than '
        "'measured'"
    )


def test_no_weight_is_read() -> None:
    with torch.device("meta"):
        hollow = Branches()
    report = repfuse.plan(hollow.eval(), target="measured", shapes=(1, 16, 6, 6)).report
    assert report.target == "measured"


WORKS = [
    UNIT,
    Work("conv", 2, (4,), (5,), 6, (3,), (2,), ((1, 1),), (1,), 2, True),
    Work("conv", 1, (4,), (3, 3, 3), 4, (3, 3, 3), (1,) * 3, ((1, 1),) * 3, (1,) * 3, 4),
    Work("conv", 1, (4,), (5, 5), 6, (4, 4), (2, 2), ((1, 1),) * 2, (1, 1), 2, True, True),
    Work("linear", 2, (8,), (5,), 6, bias=True),
    Work("affine", 1, (4,), (5, 5)),
    Work("affine", 2, (4,), ()),
    Work("sum", 1, (4, 4, 4), (25,)),
    Work("concat", 1, (4, 2), (25,)),
    Work("pool", 1, (4,), (6, 6), 4, (2, 2), (2, 2), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: f"{work.kind} {len(work.sizes)}-D")
def test_each_kind_of_work_runs_on_both_runtimes(work: Work) -> None:
    for timer in (TorchTimer(nn.Linear(1, 1)), OnnxTimer()):
        seconds = timer(work)
        assert seconds is not None
        assert 0 < seconds < 1


def test_pytorch_has_no_uneven_padding() -> None:
    work = Work("conv", 1, (4,), (5, 5), 4, (2, 2), (1, 1), ((1, 0), (1, 0)), (1, 1))
    assert TorchTimer(nn.Identity())(work) is None
    assert OnnxTimer()(work) is not None


def test_a_model_of_another_dtype_is_timed_as_such() -> None:
    assert "torch.float64" in TorchTimer(nn.Linear(1, 1).double()).machine
    assert TorchTimer(nn.Linear(1, 1).double()).machine != TorchTimer(nn.Linear(1, 1)).machine


def test_the_work_of_operators() -> None:
    work = work_of(conv(8, 6, 3, padding=1), 2 * 49.0, (), 2)
    assert work is not None
    assert (work.batch, work.channels, work.sizes, work.out_channels) == (2, (8,), (7, 7), 6)
    linear = work_of(conv(8, 6, (), rank=0, stride=()), 196.0, (), 1)
    assert linear is not None
    assert (linear.kind, linear.sizes) == ("linear", (196,))
    sums = work_of(Sum(), 8.0, (4, 4), 1)
    assert sums == Work("sum", 1, (4, 4), (8,))
    assert work_of(Concat(), 8.0, (4, None), 1) is None
    assert work_of(conv(8, 6, 5), 9.0, (), 1) is None  # no output
    assert work_of(conv(8, 6, padding=1, border="reflect"), 49.0, (), 1) is None
    assert work_of(conv(64, 64, padding=1), LONGEST, (), 1) is None
    assert work_of(Pool(4, (2, 2), (2, 2), ((0, 0),) * 2, ceil_mode=True), 9.0, (), 1) is None
    assert work_of(Affine.identity(4, 0), 9.0, (), 1) == Work("affine", 1, (4,), ())


def test_a_measured_price_is_in_the_same_unit() -> None:
    """Half as long as the unit has half of its MACs, whatever the formula says."""
    times = {UNIT.key: 2e-3}
    clock = Stopwatch(lambda work: times.get(work.key, 1e-3), Timings("m", None))
    base = target_named("cpu")
    target = replace(base, clock=clock)
    cost = target.cost(conv(8, 8, padding=1), 49.0, ())
    assert target.price(cost) == pytest.approx(64 * 64 * 9 * 56 * 56 / 2)
    assert target.price(cost + cost) == pytest.approx(2 * target.price(cost))
    assert replace(cost, surplus=0.0) == base.cost(conv(8, 8, padding=1), 49.0, ())
    assert target.cost(Sum(), 1.0, ()) == Cost()  # nothing is started


# The file.


def test_times_come_back_for_the_same_machine_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "timings.json"
    first = Timings("one", path)
    assert first.get("work") is None
    first.put("work", 0.25)
    first.save()
    assert Timings("one", path).get("work") == 0.25
    assert Timings("two", path).get("work") is None


def test_two_writers_keep_what_the_other_wrote(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    one, two, other = Timings("m", path), Timings("m", path), Timings("n", path)
    for times, work in ((one, "a"), (two, "b"), (other, "c")):
        times.put(work, 0.5)
        times.save()
    again = Timings("m", path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (0.5, 0.5, None)
    assert Timings("n", path).get("c") == 0.5
    assert [one.name for one in tmp_path.iterdir()] == ["timings.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"1, m": 3}',
        b'{"1, m": {"work": "fast"}}',
        b'{"1, m": {"work": -1}}',
        b'{"1, m": {"work": true}}',
        b'{"1, m": {"work": NaN}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "timings.json"
    path.write_bytes(content)
    times = Timings("m", path)
    assert times.get("work") is None
    times.put("work", 0.5)
    times.save()
    assert Timings("m", path).get("work") == 0.5


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    times = Timings("m", tmp_path / "file" / "timings.json")
    times.put("work", 0.5)
    times.save()
    assert times.get("work") == 0.5
    Timings("m", None).save()
    assert (tmp_path / "file").read_text() == "in the way"


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    Timings("m", tmp_path / "timings.json").save()
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_file() == tmp_path / "cache" / "repfuse" / "timings.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_file() == tmp_path / ".cache" / "repfuse" / "timings.json"


@pytest.mark.parametrize(
    "work",
    [
        Work("sum", 8, (64, 64), (2048 * 2048,)),
        Work("affine", 8, (64,), (2048, 2048)),
        Work("linear", 1, (50_000,), (1,), 50_000),  # the weights of a model that only a plan holds
        Work("conv", 1, (4,), (1024, 1024), 4, (64, 64), (64, 64), transposed=True),
    ],
    ids=lambda work: work.kind,
)
def test_what_would_fill_the_memory_is_not_run(work: Work) -> None:
    asked: list[Work] = []
    clock = Stopwatch(lambda work: asked.append(work), Timings("m", None))
    assert clock._of(work) is None
    assert work not in asked


def test_what_is_slow_on_this_machine_is_not_run() -> None:
    """In half precision a CPU may need a hundred times as long; a pooling has few MACs."""
    times = {UNIT.key: 0.1}  # 1.2e9 MACs in a second
    clock = Stopwatch(lambda work: times.get(work.key, 1e-3), Timings("m", None))
    large = replace(UNIT, sizes=(224, 224))
    pool = Work("pool", 1, (512,), (56, 56), 512, (7, 7), (1, 1), ((3, 3), (3, 3)))
    assert clock._of(large) is None
    assert clock._of(pool) == 1e-3
    times[UNIT.key] = 1e-3
    assert Stopwatch(lambda work: times.get(work.key, 1e-3), Timings("m", None))._of(large) == 1e-3


def test_what_takes_long_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, now = list[int](), iter(range(0, 1000, 7))
    monkeypatch.setattr("repfuse.measured.time.perf_counter", lambda: float(next(now)))
    assert quickest(lambda: runs.append(1)) == 7.0
    assert runs == [1]


@pytest.mark.parametrize("time", [5e-324, 1e-320, 1e-12, 1e8])
def test_a_time_that_nothing_can_take_is_none(cache: Path, time: float) -> None:
    """Prices are finite, whatever the file of times holds."""
    first = plan_of("torch").report
    ((machine, times),) = json.loads(cache.read_text()).items()
    cache.write_text(json.dumps({machine: dict.fromkeys(times, time)}))
    again = plan_of("torch").report
    assert "nan" not in str(again)
    assert len(json.loads(cache.read_text())[machine]) == len(times)
    assert all(0 < one < 1 for one in json.loads(cache.read_text())[machine].values())
    assert first.basis == again.basis


def test_the_quickest_of_several_runs_counts() -> None:
    runs: list[int] = []
    assert 0 <= quickest(lambda: runs.append(len(runs))) < 0.01
    assert len(runs) > 5


# The command.


def test_the_command_measures_and_shows_it(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)).eval()
    source = tmp_path / "in.onnx"
    onnx.save(exported(model, torch.randn(1, 3, 9, 9), "open"), source)
    command = [str(source), "--plan", "--target", "measured", "--input", "image=2x3x20x20"]
    monkeypatch.setattr(sys, "argv", ["repfuse-onnx", *command])
    with pytest.raises(SystemExit) as caught:
        main()
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "for an input of image 2 x 3 x 20 x 20" in shown
    assert " ms, " in shown
    works = next(iter(json.loads(cache.read_text()).values()))
    assert any("batch=2" in work and "sizes=(20, 20)" in work for work in works)


def test_sizes_of_a_file_count_and_open_ones_are_told_by_shapes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)).eval()
    x = torch.randn(1, 3, 9, 9)
    fixed, free = exported(model, x, "fixed"), exported(model, x, "open")
    macs = 8 * 3 * 9
    assert repfuse.plan(fixed).macs[1] == macs * 81
    assert repfuse.plan(free).macs[1] == macs * 224 * 224
    told = repfuse.plan(free, shapes={"image": (5, 3, 10, 20)})
    assert told.macs[1] == macs * 200
    assert told.report.cost_after.macs == 5 * macs * 200
    assert np.isfinite(told.report.regions[0].price_after)
