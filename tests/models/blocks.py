"""The published blocks: how each is built, on what it runs, and how few operators it can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.models import borders, branches, chains

__all__ = ["BLOCKS", "FRONTENDS", "Block", "Case", "Gap", "cases"]

FRONTENDS = ("module", "ONNX")
# Odd, and never square.
PLANE = ((9, 7), (11, 5), (7, 13))
LARGE = ((15, 9), (13, 17), (11, 19))
LINE = ((9,), (15,), (31,))
SPACE = ((5, 7, 3), (7, 5, 9), (3, 9, 5))


@dataclass(frozen=True)
class Gap:
    """What a block comes to today where that is more than it could, and why, as the plan says;
    no reason where the plan has none."""

    reaches: int
    reason: str


@dataclass(frozen=True)
class Block:
    """build: makes the block from the keywords of an option. sizes: the spatial ones of inputs of
    `channels` channels. smallest: the fewest operators that can compute it. target: what is saved
    for, "min-ops" where one operator has more MACs than the block. export: "fixed" where an export
    holds the size of its input, "dynamo" where only this exporter can write it. gaps: by option
    and frontend."""

    build: Callable[..., nn.Module]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    channels: int = 4
    sizes: tuple[tuple[int, ...], ...] = PLANE
    smallest: int = 1
    target: str = "cpu"
    export: str = "open"
    gaps: Mapping[tuple[str, str], Gap] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One block with one of its options."""

    name: str
    option: str
    block: Block

    def __str__(self) -> str:
        return f"{self.name}, {self.option}" if self.option else self.name

    def build(self) -> nn.Module:
        return self.block.build(**self.block.options[self.option])

    def expected(self, frontend: str) -> int:
        """How many operators are left on the frontend."""
        gap = self.block.gaps.get((self.option, frontend))
        return self.block.smallest if gap is None else gap.reaches


def cases() -> Iterator[Case]:
    for name, block in BLOCKS.items():
        for option in block.options:
            yield Case(name, option, block)


PLAIN: dict[str, Any] = {}
WIDER = {"outputs": 6}
STRIDE = {"stride": 2}
BIAS = {"bias": True}
BARE = {"affine": False}
TAPS = "would give its bias or taps"

BLOCKS: dict[str, Block] = {
    "RepVGG": Block(
        branches.RepVGG,
        {
            "": PLAIN,
            "stride 2": {"stride": 2, "outputs": 6},
            "2 groups": {"groups": 2},
            "depthwise": {"groups": 4},
            "bias": BIAS,
            "norms without affine": BARE,
        },
    ),
    "RepVGG, functional": Block(branches.Functional),
    "RepVGG, 1-D": Block(
        branches.RepVGG,
        {
            "": {"rank": 1},
            "stride 2": {"rank": 1, "stride": 2},
            "dilated": {"rank": 1, "dilation": 2},
        },
        sizes=LINE,
    ),
    "RepVGG, 3-D": Block(
        branches.RepVGG,
        {
            "": {"rank": 3},
            "stride 2": {"rank": 3, "stride": 2},
            "depthwise": {"rank": 3, "groups": 4},
        },
        sizes=SPACE,
    ),
    "weighted RepVGG": Block(
        branches.WeightedRepVGG, {"": PLAIN, "stride 2": STRIDE, "2 groups": {"groups": 2}}
    ),
    "QARepVGG": Block(
        branches.QARepVGG,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": {"groups": 2}, "bias": BIAS, "no affine": BARE},
    ),
    "LinearAddBlock": Block(branches.LinearAdd, {"": PLAIN, "stride 2": {**STRIDE, **WIDER}}),
    "ACNet": Block(
        branches.ACBlock,
        {
            "": PLAIN,
            "stride 2": STRIDE,
            "2 groups": {"groups": 2},
            "5x5": {"kernel_size": 5, "padding": 2},
            "without padding": {"padding": 0},
            "bias": BIAS,
            "norms without affine": BARE,
        },
    ),
    "Diverse Branch Block": Block(
        borders.DiverseBranch,
        {
            "": PLAIN,
            "stride 2": {**STRIDE, **WIDER},
            "2 groups": {"groups": 2},
            "depthwise": {"groups": 4},
            "depthwise 4x4": {"groups": 4, "kernel_size": 4},
            "3x5, wider inside": {"kernel_size": (3, 5), "inner": 8},
            "1x3": {"kernel_size": (1, 3)},
        },
        export="fixed",
    ),
    "Diverse Branch Block, open sizes": Block(
        borders.DiverseBranch,
        {"": PLAIN, "norms without affine": BARE},
        export="dynamo",
        gaps={
            ("", "ONNX"): Gap(
                330, f"the second conv pads by {((1, 1), (1, 1))} where the first {TAPS}"
            ),
            ("norms without affine", "ONNX"): Gap(
                358, f"the second conv pads by {((1, 1), (1, 1))} where the first {TAPS}"
            ),
        },
    ),
    "multi-scale convs": Block(
        branches.MultiScale,
        {
            "odd": {"sizes": ((3, 3), (1, 3), (3, 1), (1, 1))},
            "even": {"sizes": ((4, 4), (2, 2), (1, 2), (3, 3))},
            "bias": {"sizes": ((3, 5), (5, 3), (2, 4)), "bias": True},
        },
        channels=3,
    ),
    "MobileOne": Block(
        branches.MobileOne,
        {
            "": PLAIN,
            "stride 2": STRIDE,
            "depthwise": {"groups": 4},
            "pointwise": {"kernel_size": 1},
            "bias": BIAS,
            "norms without affine": BARE,
        },
    ),
    "RepLKNet": Block(
        branches.LargeKernel,
        {"": PLAIN, "stride 2": STRIDE, "bias": BIAS, "norms without affine": BARE},
        sizes=LARGE,
    ),
    "UniRepLKNet": Block(branches.DilatedReparam, {"": PLAIN, "bias": BIAS}, sizes=LARGE),
    "FastViT RepMixer": Block(branches.RepMixer),
    "FastViT RepCPE": Block(branches.RepCPE, {"": PLAIN, "no bias": {"bias": False}}),
    "RepViT RepVGGDW": Block(
        branches.RepVGGDW, {"": PLAIN, "no bias": {"bias": False}, "norms without affine": BARE}
    ),
    "RepViT classifiers": Block(
        branches.TwoHeads, {"": PLAIN, "no bias": {"bias": False}}, smallest=2
    ),
    "RepGhost": Block(branches.RepGhost, {"": PLAIN, "bias": BIAS}, smallest=3),
    "ECBSR": Block(
        borders.EdgeOriented, {"": PLAIN, "wider, without identity": WIDER}, export="fixed"
    ),
    "Conv3XC": Block(
        chains.Conv3XC,
        {"": PLAIN, "stride 2": STRIDE, "no bias": {"bias": False}},
        channels=3,
    ),
    "OREPA": Block(
        chains.OREPA,
        {"": PLAIN, "stride 2": STRIDE, "2 groups, 5x5": {"groups": 2, "size": 5}},
        export="dynamo",
    ),
    "OmniShift": Block(branches.OmniShift),
    "ExpandNet": Block(
        chains.ExpandNet,
        {
            "CL": {"kind": "CL"},
            "CL, stride 2": {"kind": "CL", "stride": 2},
            "CL, no bias": {"kind": "CL", "bias": False},
            "CK": {"kind": "CK"},
        },
        channels=3,
    ),
    "SESR": Block(chains.SESR, {"": PLAIN, "5x5": {"kernel_size": 5}, "bias": BIAS}),
    "RepConv without identity": Block(
        branches.RepVGG, {"": WIDER, "2 groups": {**WIDER, "groups": 2}, "bias": {**WIDER, **BIAS}}
    ),
    "PP-LCNetV3": Block(chains.LCNetV3, {"": PLAIN}, smallest=3),
    "PP-LCNetV3 down": Block(chains.LCNetV3, {"stride 2": STRIDE}),
    "implicit add and multiply": Block(
        chains.Implicit, {"": PLAIN, "no bias": {"bias": False}}, smallest=3
    ),
    "Spike-driven RepConv": Block(
        borders.SpikeRepConv, channels=2, target="min-ops", export="fixed"
    ),
    "RepSPK": Block(branches.RepSPK, {"": PLAIN, "stride 2": STRIDE, "2 groups": {"groups": 2}}),
    "LoRA on a Linear": Block(
        chains.LoRALinear,
        {"": PLAIN, "no bias": {"bias": False}},
        sizes=((6,), (5, 6), (7, 3, 6)),
        channels=0,
    ),
    "LoRA on a conv": Block(chains.LoRAConv, {"": PLAIN, "stride 2": STRIDE}),
    "decoder": Block(
        chains.Decoder,
        {
            "": PLAIN,
            "2 groups": {"groups": 2},
            "bias": BIAS,
            "parallel": {"sizes": (4, 2)},
            "parallel, 2 groups": {"sizes": (4, 2, 6), "groups": 2},
        },
    ),
    # Its factors are made of the input, for which the plan has no line.
    "dynamic gates": Block(
        branches.DynamicGates,
        smallest=5,
        gaps={("", "module"): Gap(10, ""), ("", "ONNX"): Gap(13, "")},
    ),
}
