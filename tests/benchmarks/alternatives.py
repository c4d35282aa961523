"""Pieces of the published blocks in two forms each, which compute the same kind of map.

The first form is what the authors train; the second is what a merge could put in its place. The
pieces have their norms folded, whole blocks have them all. Weights are random: time does not depend
on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import repfuse
from tests.models import borders, branches, chains
from tests.numerics import randomize

__all__ = ["Alternative", "alternatives"]

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Alternative:
    """family: what is merged. shape: that of the input, with the batch."""

    family: str
    option: str
    shape: tuple[int, ...]
    before: Callable[[], nn.Module]
    after: Callable[[], nn.Module]

    def __str__(self) -> str:
        return f"{self.family}, {self.option}"


class Sum(nn.Module):
    """The sum of what the branches make of one input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.branches
        total: Tensor = first(x)
        for branch in rest:
            total = total + branch(x)
        return total


class Concat(Sum):
    """The channels of what the branches make of one input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Split(nn.Module):
    """A conv on the first channels, the others as they are."""

    def __init__(self, conv: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.width = conv, width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, : self.width]), x[:, self.width :]], 1)


def conv(
    inputs: int,
    outputs: int,
    size: int | Sequence[int],
    rank: int = 2,
    pad: int | Sequence[int] | None = None,
    **settings: Any,
) -> nn.Module:
    """A conv that keeps the size of its input, up to the stride."""
    sizes = (size,) * rank if isinstance(size, int) else tuple(size)
    dilation = settings.get("dilation", 1)
    if pad is None:
        pad = tuple(dilation * (k - 1) // 2 for k in sizes)
    made: nn.Module = CONVS[rank](inputs, outputs, sizes, padding=pad, **settings)
    return made


def depthwise(channels: int, size: int | Sequence[int], **settings: Any) -> nn.Module:
    return conv(channels, channels, size, groups=channels, **settings)


def _each(
    family: str | Callable[..., str],
    cases: Iterable[tuple[int, ...]],
    option: Callable[..., str],
    shape: Callable[..., tuple[int, ...]],
    before: Callable[..., nn.Module],
    after: Callable[..., nn.Module],
) -> Iterator[Alternative]:
    """One alternative for each case, whose numbers all functions are given."""
    for case in cases:
        name = family if isinstance(family, str) else family(*case)
        forms = partial(before, *case), partial(after, *case)
        yield Alternative(name, option(*case), shape(*case), *forms)


def alternatives() -> Iterator[Alternative]:
    """All of them, in a fixed order."""
    yield from _dense()
    yield from _depthwise()
    yield from _groups()
    yield from _chains()
    yield from _linears()
    yield from _others()
    yield from _blocks()


def _dense() -> Iterator[Alternative]:
    yield from _each(
        "3x3 + 1x1 + identity",
        (
            *((8, 112, 1), (16, 56, 1), (16, 112, 1), (32, 28, 1), (32, 112, 1), (64, 56, 1)),
            *((64, 14, 1), (128, 28, 1), (128, 14, 1), (256, 14, 1), (256, 7, 1)),
            *((64, 28, 4), (128, 7, 4), (24, 20, 4)),
        ),
        lambda c, s, b: f"{c} channels, {s} x {s}, batch {b}",
        lambda c, s, b: (b, c, s, s),
        lambda c, s, b: Sum(conv(c, c, 3), conv(c, c, 1), nn.Identity()),
        lambda c, s, b: conv(c, c, 3),
    )
    yield from _each(
        "3x3 + 1x1, stride 2",
        ((16, 56), (48, 28), (64, 14), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(conv(c, 2 * c, 3, stride=2), conv(c, 2 * c, 1, stride=2)),
        lambda c, s: conv(c, 2 * c, 3, stride=2),
    )
    yield from _each(
        "3x3 + 1x3 + 3x1",
        ((16, 56, 1), (64, 28, 1), (128, 14, 1), (64, 14, 4)),
        lambda c, s, b: f"{c} channels, {s} x {s}, batch {b}",
        lambda c, s, b: (b, c, s, s),
        lambda c, s, b: Sum(conv(c, c, 3), conv(c, c, (1, 3)), conv(c, c, (3, 1))),
        lambda c, s, b: conv(c, c, 3),
    )
    yield from _each(
        "1x3 + 3x1",
        ((16, 56), (32, 56), (64, 14), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(conv(c, c, (1, 3)), conv(c, c, (3, 1))),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "3x3 + dilated 3x3, one 5x5",
        ((8, 56), (32, 28), (64, 28), (128, 14), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(conv(c, c, 3), conv(c, c, 3, dilation=2)),
        lambda c, s: conv(c, c, 5),
    )
    yield from _each(
        "dilated 3x3, dense 5x5",
        ((16, 28), (64, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: conv(c, c, 3, dilation=2),
        lambda c, s: conv(c, c, 5),
    )
    yield from _each(
        "3x3 + 3x3 of average pooling and 1x1",
        ((16, 56), (64, 28), (64, 7), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(conv(c, c, 3), nn.Sequential(conv(c, c, 1), nn.AvgPool2d(3, 1, 1))),
        lambda c, s: conv(c, c, 3),
    )


def _depthwise() -> Iterator[Alternative]:
    yield from _each(
        "depthwise 3x3 + 1x1 + identity",
        ((16, 112, 1), (32, 56, 1), (64, 28, 1), (128, 14, 1), (256, 7, 1), (64, 14, 4)),
        lambda c, s, b: f"{c} channels, {s} x {s}, batch {b}",
        lambda c, s, b: (b, c, s, s),
        lambda c, s, b: Sum(depthwise(c, 3), depthwise(c, 1), nn.Identity()),
        lambda c, s, b: depthwise(c, 3),
    )
    yield from _each(
        "depthwise 3x3 + pointwise + depthwise 5x5, a depthwise 5x5 and the pointwise",
        ((32, 28), (64, 56), (128, 14), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(depthwise(c, 3), conv(c, c, 1), depthwise(c, 5)),
        lambda c, s: Sum(conv(c, c, 1), depthwise(c, 5)),
    )
    yield from _each(
        "depthwise 3x3 + pointwise + depthwise 5x5, one 5x5",
        ((4, 56), (8, 28), (16, 56), (32, 28), (64, 56), (128, 14), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(depthwise(c, 3), conv(c, c, 1), depthwise(c, 5)),
        lambda c, s: conv(c, c, 5),
    )
    yield from _each(
        "depthwise 3x3 + pointwise, one 3x3",
        ((4, 56), (8, 28), (16, 56), (16, 14), (32, 28), (64, 14), (128, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(depthwise(c, 3), conv(c, c, 1)),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        lambda c, s, k: f"depthwise {k}x{k} + 5x5",
        ((32, 28, 31), (64, 14, 13), (128, 14, 31), (256, 7, 13), (64, 56, 7)),
        lambda c, s, k: f"{c} channels, {s} x {s}",
        lambda c, s, k: (1, c, s, s),
        lambda c, s, k: Sum(depthwise(c, k), depthwise(c, 5)),
        lambda c, s, k: depthwise(c, k),
    )
    yield from _each(
        "depthwise 9x9 + four dilated",
        ((32, 28), (64, 14), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(
            depthwise(c, 9),
            *(depthwise(c, k, dilation=d) for k, d in ((5, 1), (5, 2), (3, 3), (3, 4))),
        ),
        lambda c, s: depthwise(c, 9),
    )
    yield from _each(
        "depthwise 7x7 + identity",
        ((32, 28), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(depthwise(c, 7), nn.Identity()),
        lambda c, s: depthwise(c, 7),
    )


def _groups() -> Iterator[Alternative]:
    yield from _each(
        "grouped 3x3 + pointwise, one 3x3",
        ((16, 56, 4), (32, 28, 4), (64, 14, 4), (128, 14, 8), (32, 56, 2)),
        lambda c, s, g: f"{c} channels, {g} groups, {s} x {s}",
        lambda c, s, g: (1, c, s, s),
        lambda c, s, g: Sum(conv(c, c, 3, groups=g), conv(c, c, 1)),
        lambda c, s, g: conv(c, c, 3),
    )
    yield from _each(
        "grouped 3x3 + grouped 1x1 + identity",
        ((32, 56, 4), (64, 28, 8), (128, 14, 4), (128, 7, 32)),
        lambda c, s, g: f"{c} channels, {g} groups, {s} x {s}",
        lambda c, s, g: (1, c, s, s),
        lambda c, s, g: Sum(conv(c, c, 3, groups=g), conv(c, c, 1, groups=g), nn.Identity()),
        lambda c, s, g: conv(c, c, 3, groups=g),
    )
    yield from _each(
        "depthwise 3x3 + grouped 1x1, one grouped 3x3",
        ((32, 28, 4), (64, 14, 8), (16, 56, 8)),
        lambda c, s, g: f"{c} channels, {g} groups, {s} x {s}",
        lambda c, s, g: (1, c, s, s),
        lambda c, s, g: Sum(depthwise(c, 3), conv(c, c, 1, groups=g)),
        lambda c, s, g: conv(c, c, 3, groups=g),
    )


def _chains() -> Iterator[Alternative]:
    yield from _each(
        "1x1, 3x3, 1x1, one 3x3",
        (
            *((32, 28, 8), (64, 56, 16), (64, 14, 16), (128, 14, 32), (256, 7, 64), (128, 28, 64)),
            *((16, 56, 64), (32, 28, 128), (64, 14, 256), (16, 14, 32)),
        ),
        lambda c, s, i: f"{c} channels, {i} inside, {s} x {s}",
        lambda c, s, i: (1, c, s, s),
        lambda c, s, i: nn.Sequential(conv(c, i, 1, pad=1), conv(i, i, 3, pad=0), conv(i, c, 1)),
        lambda c, s, i: conv(c, c, 3),
    )
    yield from _each(
        "3x3, 1x1, one 3x3",
        ((16, 56, 16), (64, 28, 64), (32, 28, 64), (64, 14, 16), (128, 14, 32)),
        lambda c, s, i: f"{c} channels, {i} inside, {s} x {s}",
        lambda c, s, i: (1, c, s, s),
        lambda c, s, i: nn.Sequential(conv(c, i, 3), conv(i, c, 1)),
        lambda c, s, i: conv(c, c, 3),
    )
    yield from _each(
        "depthwise 3x3 of stride 2, pointwise, one 3x3",
        ((4, 112), (16, 56), (32, 28), (64, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: nn.Sequential(depthwise(c, 3, stride=2), conv(c, 2 * c, 1)),
        lambda c, s: conv(c, 2 * c, 3, stride=2),
    )
    yield from _each(
        "depthwise 3x3, pointwise, one 3x3",
        ((8, 28), (16, 56), (32, 28), (64, 14), (128, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: nn.Sequential(depthwise(c, 3), conv(c, c, 1)),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "1x3, 3x1, one 3x3",
        ((16, 56), (64, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: nn.Sequential(conv(c, c, (1, 3), pad=1), conv(c, c, (3, 1), pad=0)),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "conv and norm",
        ((16, 112), (64, 28), (256, 7)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: nn.Sequential(conv(c, c, 3), nn.BatchNorm2d(c)),
        lambda c, s: conv(c, c, 3),
    )


def _linears() -> Iterator[Alternative]:
    yield from _each(
        "Linear + low rank",
        (
            *(
                (192, 8, 196, 1),
                (384, 16, 196, 1),
                (64, 4, 49, 4),
                (768, 64, 50, 1),
                (256, 128, 196, 1),
            ),
        ),
        lambda c, r, tokens, b: f"{c} features, rank {r}, {tokens} tokens, batch {b}",
        lambda c, r, tokens, b: (b, tokens, c),
        lambda c, r, tokens, b: Sum(
            nn.Linear(c, c), nn.Sequential(nn.Linear(c, r, bias=False), nn.Linear(r, c))
        ),
        lambda c, r, tokens, b: nn.Linear(c, c),
    )
    yield from _each(
        "Linears in series, one Linear",
        ((384, 16, 196), (256, 64, 196), (256, 120, 196), (768, 8, 1)),
        lambda c, r, tokens: f"{c} features, {r} inside, {tokens} tokens",
        lambda c, r, tokens: (1, tokens, c),
        lambda c, r, tokens: nn.Sequential(nn.Linear(c, r), nn.Linear(r, c)),
        lambda c, r, tokens: nn.Linear(c, c),
    )
    yield from _each(
        "two Linears",
        ((192, 196), (512, 50), (1024, 1)),
        lambda c, tokens: f"{c} features, {tokens} tokens",
        lambda c, tokens: (1, tokens, c),
        lambda c, tokens: Sum(nn.Linear(c, c), nn.Linear(c, c)),
        lambda c, tokens: nn.Linear(c, c),
    )


def _others() -> Iterator[Alternative]:
    yield from _each(
        "concat of 3x3 convs",
        ((32, 56), (64, 28), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Concat(conv(c, c // 2, 3), conv(c, c // 2, 3)),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "concat of 1x1 and 3x3, one 3x3",
        ((16, 28), (32, 56), (64, 28), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Concat(conv(c, c // 2, 3), conv(c, c // 2, 1)),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "partial 3x3, one 3x3",
        ((16, 56), (64, 28), (128, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Split(conv(c // 4, c // 4, 3), c // 4),
        lambda c, s: conv(c, c, 3),
    )
    yield from _each(
        "transposed 4x4 + 2x2",
        ((16, 28), (32, 14), (64, 14)),
        lambda c, s: f"{c} channels, {s} x {s}",
        lambda c, s: (1, c, s, s),
        lambda c, s: Sum(nn.ConvTranspose2d(c, c, 4, 2, 1), nn.ConvTranspose2d(c, c, 2, 2)),
        lambda c, s: nn.ConvTranspose2d(c, c, 4, 2, 1),
    )
    yield from _each(
        "1-D 9 + 1",
        ((32, 1000), (64, 400), (256, 100)),
        lambda c, s: f"{c} channels, {s}",
        lambda c, s: (1, c, s),
        lambda c, s: Sum(conv(c, c, 9, rank=1), conv(c, c, 1, rank=1)),
        lambda c, s: conv(c, c, 9, rank=1),
    )
    yield from _each(
        "3-D 3x3x3 + 1x1x1 + identity",
        ((8, 28, 8), (32, 14, 4)),
        lambda c, s, d: f"{c} channels, {d} x {s} x {s}",
        lambda c, s, d: (1, c, d, s, s),
        lambda c, s, d: Sum(conv(c, c, 3, rank=3), conv(c, c, 1, rank=3), nn.Identity()),
        lambda c, s, d: conv(c, c, 3, rank=3),
    )
    yield from _each(
        "stem 3x3 + 1x1, stride 2",
        ((3, 112, 1), (3, 64, 4)),
        lambda c, s, b: f"{c} to 32 channels, {s} x {s}, batch {b}",
        lambda c, s, b: (b, c, s, s),
        lambda c, s, b: Sum(conv(c, 32, 3, stride=2), conv(c, 32, 1, stride=2)),
        lambda c, s, b: conv(c, 32, 3, stride=2),
    )


def _blocks() -> Iterator[Alternative]:
    """Whole blocks with their norms, beside what they are merged into."""
    rows: tuple[tuple[str, Callable[..., nn.Module], tuple[int, ...]], ...] = (
        ("RepVGG", lambda c: branches.RepVGG(c, c), (1, 32, 56, 56)),
        ("RepVGG", lambda c: branches.RepVGG(c, c), (1, 64, 28, 28)),
        ("RepVGG", lambda c: branches.RepVGG(c, c), (4, 128, 14, 14)),
        ("RepVGG, stride 2", lambda c: branches.RepVGG(c, 2 * c, stride=2), (1, 64, 28, 28)),
        ("RepVGG, 4 groups", lambda c: branches.RepVGG(c, c, groups=4), (1, 64, 28, 28)),
        ("RepVGG, 1-D", lambda c: branches.RepVGG(c, c, rank=1), (1, 64, 800)),
        ("RepVGG, 3-D", lambda c: branches.RepVGG(c, c, rank=3), (1, 16, 4, 14, 14)),
        ("weighted RepVGG", branches.WeightedRepVGG, (1, 64, 28, 28)),
        ("QARepVGG", lambda c: branches.QARepVGG(c, c), (1, 64, 28, 28)),
        ("LinearAddBlock", lambda c: branches.LinearAdd(c, c), (1, 64, 28, 28)),
        ("ACNet", lambda c: branches.ACBlock(c, c), (1, 16, 56, 56)),
        ("ACNet", lambda c: branches.ACBlock(c, c), (1, 128, 14, 14)),
        ("Diverse Branch Block", lambda c: borders.DiverseBranch(c, c), (1, 32, 28, 28)),
        ("Diverse Branch Block", lambda c: borders.DiverseBranch(c, c), (1, 128, 14, 14)),
        ("MobileOne", lambda c: branches.MobileOne(c, c), (1, 64, 28, 28)),
        ("MobileOne, depthwise", _mobileone, (1, 64, 56, 56)),
        ("MobileOne, depthwise", _mobileone, (1, 256, 14, 14)),
        ("RepLKNet", branches.LargeKernel, (1, 64, 28, 28)),
        ("UniRepLKNet", branches.DilatedReparam, (1, 96, 28, 28)),
        ("RepMixer", branches.RepMixer, (1, 48, 56, 56)),
        ("RepMixer", branches.RepMixer, (1, 192, 14, 14)),
        ("RepCPE", branches.RepCPE, (1, 192, 14, 14)),
        ("RepVGGDW", branches.RepVGGDW, (1, 96, 28, 28)),
        ("two heads", lambda c: branches.TwoHeads(c, 1000), (1, 384, 7, 7)),
        ("RepGhost", lambda c: branches.RepGhost(c, 2 * c), (1, 24, 28, 28)),
        ("RepSPK", lambda c: branches.RepSPK(c, c), (1, 64, 28, 28)),
        ("OmniShift", branches.OmniShift, (1, 48, 56, 56)),
        ("ECBSR", lambda c: borders.EdgeOriented(c, c), (1, 16, 112, 112)),
        ("Conv3XC", lambda c: chains.Conv3XC(c, c), (1, 48, 56, 56)),
        ("ExpandNet", lambda c: chains.ExpandNet("CL", c, c), (1, 32, 28, 28)),
        ("ExpandNet, 3x3 convs", lambda c: chains.ExpandNet("CK", c, c), (1, 32, 28, 28)),
        ("SESR", chains.SESR, (1, 16, 112, 112)),
        ("PP-LCNetV3", lambda c: chains.LCNetV3(c, 2 * c), (1, 32, 28, 28)),
        ("implicit add and multiply", lambda c: chains.Implicit(c, 255), (1, 128, 14, 14)),
        ("LoRA on a Linear", lambda c: chains.LoRALinear(c, c, 8), (1, 196, 384)),
        ("LoRA on a conv", lambda c: chains.LoRAConv(c, c), (1, 64, 28, 28)),
        ("decoder", lambda c: chains.Decoder(c, c, (4, 2)), (1, 64, 14, 14)),
    )
    for name, build, shape in rows:
        channels = shape[-1] if len(shape) == 3 and name.startswith("LoRA") else shape[1]
        text = f"{channels} channels, {' x '.join(map(str, shape[2:]))}, batch {shape[0]}"

        def before(build: Callable[..., nn.Module] = build, channels: int = channels) -> nn.Module:
            torch.manual_seed(0)
            return randomize(build(channels)).eval()

        def after(before: Callable[[], nn.Module] = before) -> nn.Module:
            return repfuse.fuse(before(), target="min-ops")

        yield Alternative(f"block: {name}", text, shape, before, after)


def _mobileone(channels: int) -> nn.Module:
    return branches.MobileOne(channels, channels, groups=channels)
