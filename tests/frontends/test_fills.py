"""Borders that code fills by assignment: which of them one conv can make, and which stay."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.numerics import assert_same, count_ops, randomize

Fill = Callable[["Bordered", Tensor, Tensor], Tensor]


class Bordered(nn.Module):
    """A 1x1 conv, a border that is filled, a 3x3 conv without padding."""

    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3)
        self.other = nn.Parameter(torch.randn(4))
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        assert self.first.bias is not None
        result: Tensor = self.second(self.fill(self, y, self.first.bias.view(1, -1, 1, 1)))
        return result


def around(y: Tensor, b: Tensor) -> Tensor:
    """All four sides of a border of one."""
    y[:, :, :1, :] = b
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y


def plain(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    return around(F.pad(y, [1, 1, 1, 1]), b)


def by_name(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(input=y, pad=(1, 1, 1, 1), mode="constant", value=0.0)
    y[..., :1, :] = b
    y[:, :, -1:] = b
    y[..., :1] = b[0]
    y[..., -1:] = b
    return y


def in_another_order(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :, :, -1:] = b
    y[:, :, :1] = block.other.view(-1, 1, 1)
    y[:, :, -1:] = b
    y[:, :, :, 0:1] = b
    y[:, :, 0:1] = b
    return y


def uneven(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [0, 2, 1, 0])
    y[:, :, :1] = b
    y[:, :, :, -2:] = b
    return y


def another_formula(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    return around(F.pad(y, [1, 1, 1, 1]), (2 * b + block.other.view(1, -1, 1, 1) * 0 - b) / 1)


def of_the_norm(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    norm = block.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    number = (block.first.bias - norm.running_mean) * scale + norm.bias  # type: ignore[operator]
    return around(F.pad(norm(y), [1, 1, 1, 1]), number.view(1, -1, 1, 1))


FUSED: dict[str, Fill] = {
    "sides in turn": plain,
    "other spellings": by_name,
    "another order, one side twice": in_another_order,
    "two sides": uneven,
    "another formula": another_formula,
    "what a batch norm makes of zeros": of_the_norm,
}


def other_numbers(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    return around(F.pad(y, [1, 1, 1, 1]), block.other.view(1, -1, 1, 1))


def one_side_differs(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = around(F.pad(y, [1, 1, 1, 1]), b)
    y[:, :, :1, :] = block.other.view(1, -1, 1, 1)
    return y


def three_sides(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :, :1, :] = b
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    return y


def into_the_image(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :, :2, :] = b
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y


def some_channels(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :2, :1, :] = b[:, :2]
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y


def some_samples(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:1, :, :1, :] = b
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y


def read_half_done(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :, :1, :] = b
    half = y.mean()
    y[:, :, -1:, :] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y * half


def read_before(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    before = y.abs().mean()
    return around(y, b) + before


def seen_through_a_view(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    view = y[:, :, 1:-1, 1:-1]
    around(y, b)
    view += 1.0
    return y


def by_the_input(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    return around(F.pad(y, [1, 1, 1, 1]), y.mean((0, 2, 3)).view(1, -1, 1, 1))


def norm_read_for_more(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    return of_the_norm(block, y, b) * block.norm.weight.view(1, -1, 1, 1).relu()


STAYS: dict[str, Fill] = {
    "other numbers": other_numbers,
    "another number on one side": one_side_differs,
    "zeros on one side": three_sides,
    "a side that is too wide": into_the_image,
    "some channels": some_channels,
    "some samples": some_samples,
    "read when half done": read_half_done,
    "read before": read_before,
    "changed through a view": seen_through_a_view,
    "numbers from the input": by_the_input,
    "a norm whose weights something else reads": norm_read_for_more,
}
IMAGES = [torch.randn(3, 3, *size, dtype=torch.float64) for size in ((7, 5), (4, 9), (3, 3))]


def check(fill: Fill, target: str = "cpu") -> tuple[nn.Module, nn.Module]:
    model = randomize(Bordered(fill).double().eval())
    before = copy.deepcopy(model.state_dict())
    plan = repfuse.plan(model, target=target)
    fused = plan.apply()
    assert plan.report.errors == []
    for image in IMAGES:
        assert_same(model, fused, image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model, fused


@pytest.mark.parametrize("fill", FUSED.values(), ids=list(FUSED))
def test_a_border_of_what_the_conv_makes_of_zeros(fill: Fill) -> None:
    _, fused = check(fill, "min-ops")  # uneven borders need a larger kernel
    counts = count_ops(fused, IMAGES[0])
    assert (counts.convs, counts.batch_norms) == (1, 0)
    again = pickle.loads(pickle.dumps(fused))
    assert torch.equal(again(IMAGES[0]), fused(IMAGES[0]))
    assert repfuse.plan(fused).report.regions == []


@pytest.mark.parametrize("fill", STAYS.values(), ids=list(STAYS))
def test_any_other_border_stays(fill: Fill) -> None:
    _, fused = check(fill)
    assert count_ops(fused, IMAGES[0]).convs == 2


def test_the_plan_reads_no_weight() -> None:
    model = randomize(Bordered(of_the_norm).double().eval())
    fused = repfuse.fuse(model)
    skeleton = repfuse.fuse(copy.deepcopy(model).to("meta"), probe=False)
    assert fused.state_dict().keys() == skeleton.state_dict().keys()
    skeleton.load_state_dict(fused.state_dict(), assign=True)
    assert_same(fused, skeleton, IMAGES[0])


def test_zeros_that_are_a_weight_are_no_zeros_of_the_structure() -> None:
    model = Bordered(other_numbers).double().eval()
    with torch.no_grad():
        assert model.first.bias is not None
        model.other.copy_(model.first.bias)
    assert count_ops(repfuse.fuse(model), IMAGES[0]).convs == 2


CROPS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "both ends": (lambda y: y[:, :, 1:-1, 1:-1], 1),
    "one end": (lambda y: y[:, :, 1:], 1),
    "an ellipsis": (lambda y: y[..., :-1], 1),
    "nothing": (lambda y: y[:, :, 0:], 1),
    "in steps": (lambda y: y[:, :, ::2], 2),
    "from the end": (lambda y: y[:, :, -2:], 2),
    "up to a place": (lambda y: y[:, :, :2], 2),
    "one row": (lambda y: y[:, :, 1:2], 2),
    "some samples": (lambda y: y[1:, :, 1:], 2),
}


@pytest.mark.parametrize(("crop", "convs"), CROPS.values(), ids=list(CROPS))
def test_a_slice_that_crops(crop: Callable[[Tensor], Tensor], convs: int) -> None:
    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(crop(self.first(x)))
            return result

    model = randomize(Cropped().double().eval())
    image = IMAGES[0]
    fused = repfuse.fuse(model, target="min-ops")
    assert_same(model, fused, image)
    assert count_ops(fused, image).convs == convs
    check_file(model, convs)


def check_file(model: nn.Module, convs: int) -> None:
    """The same of its ONNX export, with all sizes open."""
    from tests.frontends.onnx.evaluate import difference, evaluate
    from tests.models.measure import exported

    file = exported(model, IMAGES[0], "open")
    fused = repfuse.fuse(file, target="min-ops")
    assert sum(node.op_type == "Conv" for node in fused.graph.node) == convs
    for image in IMAGES:
        feeds = {"image": image.numpy()}
        assert difference(evaluate(file, feeds), evaluate(fused, feeds)) <= 1e-10
