"""What Python code asks about a value that is recorded, and what it cannot be told.

The answer decides what is recorded. Where it may be another one for real tensors, the method is
not traced: it comes back as it was, and what it calls is fused by itself.
"""

from __future__ import annotations

import builtins
import contextlib
import cProfile
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from tests.frontends import Net, conv
from tests.numerics import randomize

X = torch.randn(2, 8, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IS_A = isinstance
KIND = type
Run = Callable[[Any, Tensor], Any]


def both(n: Any, x: Tensor) -> Any:
    return n.n(n.a(x) + n.b(x) + x)


def network(run: Run) -> Any:
    model: Any = Net(
        run, a=conv(), b=conv(size=1), n=nn.BatchNorm2d(8), p=nn.Parameter(torch.rand(8, 1, 1))
    )
    model.memo = {}
    return randomize(model.double()).eval()


def same(left: Any, right: Any) -> bool:
    return torch.allclose(left, right, rtol=1e-10, atol=1e-10)


def type_is(n: Any, x: Any) -> Any:
    return both(n, x * 2 if type(x) is Tensor else x)


def type_is_between_layers(n: Any, x: Any) -> Any:
    y = n.a(x)
    if type(y) is Tensor:
        y = torch.relu(y)
    return n.n(y)


def type_by_another_name(n: Any, x: Any) -> Any:
    return both(n, x * 2 if KIND(x) is Tensor else x)


def _is_plain(x: Any) -> bool:
    return type(x) is Tensor


def type_in_a_function(n: Any, x: Any) -> Any:
    return both(n, x * 2 if _is_plain(x) else x)


def types_of_a_list(n: Any, x: Any) -> Any:
    return both(n, x * 2 if list(map(type, [x])) == [Tensor] else x)


def class_is(n: Any, x: Any) -> Any:
    return both(n, x * 2 if x.__class__ is Tensor else x)


def type_name(n: Any, x: Any) -> Any:
    return both(n, x * 2 if type(x).__name__ == "Tensor" else x)


def is_subclass(n: Any, x: Any) -> Any:
    return both(n, x * 2 if issubclass(type(x), Tensor) else x)


def match_class(n: Any, x: Any) -> Any:
    match x:
        case Tensor():
            x = x * 2
    return both(n, x)


def match_sequence(n: Any, x: Any) -> Any:
    match x.shape:
        case (_, _, _, _):
            x = x * 2
    return both(n, x)


def match_the_second_pattern(n: Any, x: Any) -> Any:
    match x.shape:
        case {"a": 1}:
            x = x * 3
        case [_, 8, *_]:
            x = x * 2
    return both(n, x)


@functools.singledispatch
def twice(x: Any) -> Any:
    return x


@twice.register
def _(x: Tensor) -> Tensor:
    return x * 2


def single_dispatch(n: Any, x: Any) -> Any:
    return both(n, twice(x))


def isinstance_by_another_name(n: Any, x: Any) -> Any:
    return both(n, x * 2 if IS_A(x, Tensor) else x)


def isinstance_of_jit(n: Any, x: Any) -> Any:
    return both(n, x * 2 if torch.jit.isinstance(x, Tensor) else x)


def shape_is_a_tuple(n: Any, x: Any) -> Any:
    return both(n, x * 2 if isinstance(x.shape, tuple) else x)


def ndim_is_an_int(n: Any, x: Any) -> Any:
    return both(n, x * 2 if isinstance(x.ndim, int) and type(x.ndim) is int else x)


def size_is_an_int(n: Any, x: Any) -> Any:
    return both(n, x * 2 if isinstance(x.shape[0] // 2, int) else x)


def type_of_a_parameter(n: Any, x: Any) -> Any:
    return both(n, x * 2 if type(n.p) is nn.Parameter else x)


def class_of_a_buffer(n: Any, x: Any) -> Any:
    known = isinstance(n.n.running_mean, nn.Parameter) or not isinstance(n.p, nn.Parameter)
    return both(n, x if known else x * 2)


def size_in_a_set(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if x.shape[1] in {8, 16} else 1)


def dtype_in_a_set(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if x.dtype in {torch.float64, torch.float16} else 1)


def dtype_is(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if x.dtype is torch.float64 else 1)


def local_dtype_is(n: Any, x: Any) -> Any:
    wanted, dtype = [torch.float64][0], x.dtype
    return both(n, x) * (2 if dtype is wanted else 1)


def attribute_is_true(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if x.is_leaf is True else 1)


def size_in_a_table(n: Any, x: Any) -> Any:
    return both(n, x) * {8: 2.0, 16: 3.0}.get(x.shape[1], 1.0)


def dim_in_a_table(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if x.dim() in {4: "image"} else 1)


@functools.lru_cache
def _known(size: int) -> int:
    return size


def cached(n: Any, x: Any) -> Any:
    return both(n, x) * _known(x.shape[1])


def str_of_dtype(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if "float" in str(x.dtype) else 1)


def str_of_device(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if str(x.device).startswith("cpu") else 1)


def formatted(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if f"{x.dtype}" == "torch.float64" else 1)


def formatted_by_a_percent_sign(n: Any, x: Any) -> Any:
    return both(n, x) * (2 if "%s" % x.dtype == "torch.float64" else 1)  # noqa: UP031


def repr_of_dtype(n: Any, x: Any) -> Any:
    text = repr(x.dtype)
    return both(n, x) * (2 if text == "torch.float64" else 1)


def text_as_a_key_that_is_known(n: Any, x: Any) -> Any:
    key = str(x.device)
    return both(n, x) * (2 if key in {"cpu": 1} else 1)


def grad_fn(n: Any, x: Any) -> Any:
    y = both(n, x)
    return y * 2 if y.grad_fn is None else y


def index_of_a_device(n: Any, x: Any) -> Any:
    return both(n, x * 2 if x.device.index is None else x)


def try_int(n: Any, x: Any) -> Any:
    try:
        size = int(x.shape[1])
    except Exception:
        size = 3
    return both(n, x) * size


def int_of_before(n: Any, x: Any) -> Any:
    size = x.shape[1]
    try:
        size = int(size)
    except TypeError:
        size = 3
    return both(n, x) * size


def torch_does_not_take_it(n: Any, x: Any) -> Any:
    dtype = x.dtype
    try:
        one = torch.ones(1, dtype=dtype)
    except TypeError:
        one = torch.full((1,), 3.0)
    return both(n, x) * (one + 1)


def try_bool(n: Any, x: Any) -> Any:
    try:
        factor = 2 if x.sum() > -1e9 else 1
    except RuntimeError:
        factor = 3
    except Exception:
        factor = 4
    return both(n, x) * factor


def try_len(n: Any, x: Any) -> Any:
    try:
        size = len(x)
    except (TypeError, RuntimeError):
        size = 7
    return both(n, x) * size


def try_key(n: Any, x: Any) -> Any:
    try:
        factor = {8: 2}[x.shape[1]]
    except KeyError:
        factor = 1
    return both(n, x) * factor


def suppressed(n: Any, x: Any) -> Any:
    factor = 3.0
    with contextlib.suppress(Exception):
        factor = float(x.sum())
    return both(n, x) * factor


def try_view(n: Any, x: Any) -> Any:
    try:  # noqa: SIM105
        x = x.view(1, 2)
    except RuntimeError:
        pass
    return both(n, x)


def suppressed_view(n: Any, x: Any) -> Any:
    with contextlib.suppress(RuntimeError):
        x = x.view(1, 2)
    return both(n, x)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    try:  # noqa: SIM105
        yield
    except RuntimeError:
        pass


def view_in_a_context_of_its_own(n: Any, x: Any) -> Any:
    with quiet():
        x = x.view(1, 2)
    return both(n, x)


def _viewed(x: Any) -> Any:
    return x.view(1, 2)


def view_in_a_function(n: Any, x: Any) -> Any:
    try:
        return _viewed(x)
    except RuntimeError:
        return both(n, x)


def try_index(n: Any, x: Any) -> Any:
    try:
        y = x[:, :, 100]
    except IndexError:
        y = x
    return n.n(n.a(y) + n.b(x) + x)


def try_a_layer(n: Any, x: Any) -> Any:
    try:
        y = n.a(x[:, :3])
    except RuntimeError:
        y = n.a(x)
    return n.n(y)


def has_attribute(n: Any, x: Any) -> Any:
    return both(n, x.tensors if hasattr(x, "tensors") else x)


def get_attribute(n: Any, x: Any) -> Any:
    return both(n, getattr(x, "tensors", x))


def try_attribute(n: Any, x: Any) -> Any:
    try:  # noqa: SIM105
        x = x.tensors
    except AttributeError:
        pass
    return both(n, x)


def is_a_dict(n: Any, x: Any) -> Any:
    return both(n, x["image"] if hasattr(x, "keys") else x)


def attribute_of_a_caller(n: Any, x: Any) -> Any:
    y = both(n, x)
    return y * x._scale if getattr(x, "_scale", None) is not None else y


def is_callable(n: Any, x: Any) -> Any:
    return both(n, x() if callable(x) else x)


def name_of_a_tensor(n: Any, x: Any) -> Any:
    return both(n, x * 2 if x.name is None else x)


ASKING: tuple[Run, ...] = (
    type_is, type_is_between_layers, type_by_another_name, type_in_a_function, types_of_a_list,
    class_is, type_name, is_subclass, match_class, match_sequence, match_the_second_pattern,
    single_dispatch, isinstance_by_another_name, isinstance_of_jit, shape_is_a_tuple,
    ndim_is_an_int, size_is_an_int, type_of_a_parameter, class_of_a_buffer,
    size_in_a_set, dtype_in_a_set, dtype_is,
    local_dtype_is, attribute_is_true, size_in_a_table, dim_in_a_table, cached, str_of_dtype,
    str_of_device, formatted, formatted_by_a_percent_sign, repr_of_dtype,
    text_as_a_key_that_is_known, grad_fn, index_of_a_device, try_int, int_of_before,
    torch_does_not_take_it, try_bool, try_len, try_key, suppressed, try_view, suppressed_view,
    view_in_a_context_of_its_own, view_in_a_function, try_index, try_a_layer, has_attribute,
    get_attribute, try_attribute, is_a_dict, attribute_of_a_caller, is_callable, name_of_a_tensor,
)  # fmt: skip


@pytest.mark.parametrize("run", ASKING, ids=lambda run: run.__name__)
def test_a_question_about_a_value_is_answered_truly_or_not_at_all(run: Run) -> None:
    model = network(run)
    fused = repfuse.fuse(model)
    with torch.no_grad():
        assert same(fused(X), model(X))


@pytest.mark.parametrize("run", ASKING, ids=lambda run: run.__name__)
def test_a_child_that_asks_stays_where_nothing_around_it_can_be_traced(run: Run) -> None:
    block = network(run)
    model = Net(lambda n, x: n.block(x) if x.sum() > -1e9 else x, block=block).eval()
    fused = repfuse.fuse(model)
    with torch.no_grad():
        assert same(fused(X), model(X))


class Layout(Enum):
    FIRST = 1
    LAST = 2


def checked(n: Any, x: Any, layout: Layout = Layout.FIRST) -> Any:
    torch._assert(x.ndim == 4, f"four axes, not {x.ndim}: {x.shape}")
    if layout is Layout.LAST:
        x = x.permute(0, 3, 1, 2)
    return both(n, x)


def a_memo(n: Any, x: Any) -> Any:
    key = str(x.device)
    if key not in n.memo:
        n.memo[key] = n.p * 2
    return n.n(n.a(x)) * n.memo[key]


def compared(n: Any, x: Any) -> Any:
    for layer in (n.a, n.b):
        x = n.n(layer(x)) if layer is n.b else torch.relu(layer(x))
    return x


def raised_again(n: Any, x: Any) -> Any:
    try:
        return both(n, x)
    except RuntimeError as error:
        raise ValueError("of another shape") from error
    finally:
        n.memo.get("done")


def caught_before(n: Any, x: Any) -> Any:
    try:
        found: Any = importlib.import_module("no_such_module")
    except ImportError:
        found = None
    return both(n, x) if found is None else x


def looked_up(n: Any, x: Any) -> Any:
    factor = getattr(n, "no_such_factor", None)
    y = both(n, x) if callable(n.a) and type(n.memo) is dict and not callable(n.p) else x
    return y if factor is None else y * factor


def of_a_list(n: Any, x: Any) -> Any:
    found = [n.a(x), n.b(x)]
    return n.n(sum(found[1:], found[0])) if type(found) is list and isinstance(found, list) else x


def of_the_class_of_a_class(n: Any, x: Any) -> Any:
    known = isinstance(Layout, type) and issubclass(KIND, type) and type("A", (), {}) is not None
    return both(n, x) if known else x


def told(n: Any, x: Any) -> Any:
    if x.ndim is None:
        raise ValueError(f"no axes: {x}")
    return both(n, x)


TRACED: tuple[Run, ...] = (
    checked, compared, raised_again, caught_before, looked_up, of_a_list,
    of_the_class_of_a_class, told,
)  # fmt: skip


@pytest.mark.parametrize("run", TRACED, ids=lambda run: run.__name__)
def test_what_can_be_answered_is_traced(run: Run) -> None:
    model = network(run)
    plan = repfuse.plan(model)
    assert plan.report.untraced == {}
    assert plan.report.regions
    fused = plan.apply()
    with torch.no_grad():
        assert same(fused(X), model(X))


def test_a_memo_by_the_text_of_a_value_is_traced() -> None:
    model = network(a_memo)
    plan = repfuse.plan(model)
    assert plan.report.untraced == {}
    fused = plan.apply()
    with torch.no_grad():
        assert same(fused(X), model(X))


def _asks_the_mode(n: Any, x: Any) -> Any:
    y = n.a(x)
    if not torch.is_grad_enabled():
        y = torch.relu(y)
    return n.n(y)


def _asks_in_a_method(n: Any, x: Any) -> Any:
    return n.n(_passed_on(n.a(x)))


def _passed_on(y: Any) -> Any:
    return y if torch.is_grad_enabled() else torch.relu(y)


class Passing(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y if torch.is_grad_enabled() else torch.relu(y)


def _asks_in_a_child(n: Any, x: Any) -> Any:
    return n.n(n.c(n.a(x)))


@pytest.mark.parametrize("run", (_asks_the_mode, _asks_in_a_method, _asks_in_a_child))
def test_layers_stay_that_are_not_neighbours_in_another_mode(run: Run) -> None:
    model = Net(run, a=conv(), c=Passing(), n=nn.BatchNorm2d(8))
    model = randomize(model.double()).eval()
    fused = repfuse.fuse(model)
    with torch.no_grad():
        assert same(fused(X), model(X))
    assert same(fused(X), model(X))


@pytest.mark.parametrize("tool", ("none", "profile", "C profile", "trace", "both"))
def test_nothing_is_left_behind(tool: str) -> None:
    """Neither what is replaced in the module of the model, nor somebody's profiler is changed."""
    events: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        events.append(event)

    before = dict(globals()), builtins.isinstance, builtins.callable, contextlib.suppress.__exit__
    profiler = cProfile.Profile()
    try:
        if tool in ("profile", "both"):
            sys.setprofile(note)
        if tool == "C profile":
            profiler.enable()
        if tool in ("trace", "both"):
            sys.settrace(note)
        profile, trace = sys.getprofile(), sys.gettrace()
        models = [network(run) for run in (type_is, dtype_is, checked, try_view)]
        plans = [repfuse.plan(model) for model in models]
        assert (sys.getprofile(), sys.gettrace()) == (profile, trace)
    finally:
        profiler.disable()
        sys.setprofile(None)
        sys.settrace(None)
    assert [len(plan.report.regions) for plan in plans] == [0, 0, 1, 0]
    after = dict(globals()), builtins.isinstance, builtins.callable, contextlib.suppress.__exit__
    assert before == after


def test_who_asks_in_another_thread_gets_the_usual_answers() -> None:
    import threading

    answers: list[bool] = []
    going = threading.Event()

    def asks(n: Any, x: Any) -> Any:
        thread = threading.Thread(target=lambda: answers.append(_is_plain(X) and KIND(3) is int))
        thread.start()
        thread.join()
        going.set()
        return both(n, x * 2 if type(n.memo) is dict and not n.memo else x)

    model = network(asks)
    fused = repfuse.fuse(model)
    with torch.no_grad():
        assert same(fused(X), model(X))
    assert answers == [True] * len(answers)
    assert going.is_set()
