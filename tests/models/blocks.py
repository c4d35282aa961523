"""The published blocks: how each is built, on what it runs, and how few operators it can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from tests.models import borders, branches, chains, gated, tokens
from tests.models.functional import Functional

__all__ = ["BLOCKS", "FRONTENDS", "Block", "Case", "Gap", "cases"]

FRONTENDS = ("module", "ONNX")
TOKENS = ((65, 16), (91, 16), (131, 16))
# Odd, and never square.
PLANE = ((9, 7), (11, 5), (7, 13))
LARGE = ((15, 9), (13, 17), (11, 19))
LINE = ((9,), (15,), (31,))
SPACE = ((5, 7, 3), (7, 5, 9), (3, 9, 5))


@dataclass(frozen=True)
class Gap:
    """What a block comes to today where that is more than it could, and why, as the plan says."""

    reaches: int
    reason: str


@dataclass(frozen=True)
class Block:
    """build: makes the block from the keywords of an option. sizes: the spatial ones of inputs of
    `channels` channels. smallest: the fewest operators that can compute it; in_file: in a file,
    where a Linear on tokens is two nodes and a permutation is one. target: what is saved for,
    "min-ops" where one operator has more MACs than the block. dynamic: whether factors that depend
    on the input are looked into. export: "fixed" where an export holds the size of its input,
    "dynamo" where only this exporter can write it. functional: whether it is also tried as
    functions of its parameters, with its first option. gaps: by option and frontend."""

    build: Callable[..., nn.Module]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    channels: int = 4
    sizes: tuple[tuple[int, ...], ...] = PLANE
    smallest: int = 1
    in_file: int | None = None
    target: str = "cpu"
    dynamic: bool = False
    export: str = "open"
    functional: bool = True
    gaps: Mapping[tuple[str, str], Gap] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One block with one of its options."""

    name: str
    option: str
    block: Block
    functional: bool = False

    def __str__(self) -> str:
        return ", ".join(
            part for part in (self.name, self.option, "functional" * self.functional) if part
        )

    def build(self) -> nn.Module:
        module = self.block.build(**self.block.options[self.option])
        return Functional(module) if self.functional else module

    def expected(self, frontend: str) -> int:
        """How many operators are left on the frontend."""
        gap = self.block.gaps.get((self.option, frontend))
        return self.smallest(frontend) if gap is None else gap.reaches

    def smallest(self, frontend: str) -> int:
        """The fewest operators on the frontend."""
        in_file = self.block.in_file if frontend == "ONNX" else None
        return self.block.smallest if in_file is None else in_file


def cases() -> Iterator[Case]:
    for name, block in BLOCKS.items():
        for option in block.options:
            yield Case(name, option, block)
        if block.functional:
            yield Case(name, next(iter(block.options)), block, functional=True)


PLAIN: dict[str, Any] = {}
WIDER = {"outputs": 6}
STRIDE = {"stride": 2}
BIAS = {"bias": True}
BARE = {"affine": False}
NAKED = "norms without affine"
GROUPS = {"groups": 2}

BLOCKS: dict[str, Block] = {
    "RepVGG": Block(
        branches.RepVGG,
        {
            "": PLAIN,
            "stride 2": {"stride": 2, "outputs": 6},
            "2 groups": GROUPS,
            "depthwise": {"groups": 4},
            "bias": BIAS,
            NAKED: BARE,
        },
    ),
    "RepVGG, 1-D": Block(
        branches.RepVGG,
        {
            "": {"rank": 1},
            "stride 2": {"rank": 1, "stride": 2},
            "dilated": {"rank": 1, "dilation": 2},
            "2 groups, bias": {"rank": 1, "groups": 2, "bias": True},
            NAKED: {"rank": 1, **BARE},
        },
        sizes=LINE,
    ),
    "RepVGG, 3-D": Block(
        branches.RepVGG,
        {
            "": {"rank": 3},
            "stride 2": {"rank": 3, "stride": 2},
            "depthwise": {"rank": 3, "groups": 4},
            "bias": {"rank": 3, **BIAS},
            NAKED: {"rank": 3, **BARE},
        },
        sizes=SPACE,
    ),
    "weighted RepVGG": Block(
        branches.WeightedRepVGG,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": GROUPS, "bias": BIAS, NAKED: BARE},
    ),
    "QARepVGG": Block(
        branches.QARepVGG,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": GROUPS, "bias": BIAS, NAKED: BARE},
    ),
    "LinearAddBlock": Block(
        branches.LinearAdd,
        {
            "": PLAIN,
            "stride 2": {**STRIDE, **WIDER},
            "2 groups": GROUPS,
            "bias": BIAS,
            NAKED: BARE,
        },
    ),
    "ACNet": Block(
        branches.ACBlock,
        {
            "": PLAIN,
            "stride 2": STRIDE,
            "2 groups": GROUPS,
            "5x5": {"kernel_size": 5, "padding": 2},
            "without padding": {"padding": 0},
            "bias": BIAS,
            NAKED: BARE,
        },
    ),
    "Diverse Branch Block": Block(
        borders.DiverseBranch,
        {
            "": PLAIN,
            "stride 2": {**STRIDE, **WIDER},
            "2 groups": GROUPS,
            "depthwise": {"groups": 4},
            "depthwise 4x4": {"groups": 4, "kernel_size": 4},
            "3x5, wider inside": {"kernel_size": (3, 5), "inner": 8},
            "1x3": {"kernel_size": (1, 3)},
        },
        export="fixed",
    ),
    "Diverse Branch Block, open sizes": Block(
        borders.DiverseBranch,
        {"": PLAIN, NAKED: BARE},
        export="dynamo",
        functional=False,
    ),
    "multi-scale convs": Block(
        branches.MultiScale,
        {
            "odd": {"sizes": ((3, 3), (1, 3), (3, 1), (1, 1))},
            "even": {"sizes": ((4, 4), (2, 2), (1, 2), (3, 3))},
            "bias": {"sizes": ((3, 5), (5, 3), (2, 4)), "bias": True},
            "stride 2": {"sizes": ((3, 3), (1, 3), (2, 2)), "stride": 2},
            "depthwise": {"sizes": ((3, 3), (4, 4)), "groups": 3, "outputs": 3},
            NAKED: {"sizes": ((3, 3), (1, 3), (3, 1)), **BARE},
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
            NAKED: BARE,
        },
    ),
    "RepLKNet": Block(
        branches.LargeKernel,
        {"": PLAIN, "stride 2": STRIDE, "bias": BIAS, NAKED: BARE},
        sizes=LARGE,
    ),
    "UniRepLKNet": Block(
        branches.DilatedReparam, {"": PLAIN, "bias": BIAS, NAKED: BARE}, sizes=LARGE
    ),
    "FastViT RepMixer": Block(
        branches.RepMixer, {"": PLAIN, "5x5": {"kernel_size": 5}, "bias": BIAS, NAKED: BARE}
    ),
    "FastViT RepCPE": Block(branches.RepCPE, {"": PLAIN, "no bias": {"bias": False}}),
    "RepViT RepVGGDW": Block(
        branches.RepVGGDW, {"": PLAIN, "no bias": {"bias": False}, NAKED: BARE}
    ),
    "RepViT classifiers": Block(
        branches.TwoHeads, {"": PLAIN, "no bias": {"bias": False}, NAKED: BARE}, smallest=2
    ),
    "RepGhost": Block(branches.RepGhost, {"": PLAIN, "bias": BIAS, NAKED: BARE}, smallest=3),
    "ECBSR": Block(
        borders.EdgeOriented, {"": PLAIN, "wider, without identity": WIDER}, export="fixed"
    ),
    "ECBSR, open sizes": Block(borders.EdgeOriented, export="dynamo", functional=False),
    "Conv3XC": Block(
        chains.Conv3XC,
        {"": PLAIN, "stride 2": STRIDE, "no bias": {"bias": False}},
        channels=3,
    ),
    "OREPA": Block(
        chains.OREPA,
        {"": PLAIN, "stride 2": STRIDE, "2 groups, 5x5": {"groups": 2, "size": 5}, NAKED: BARE},
        export="dynamo",
    ),
    "OmniShift": Block(branches.OmniShift, {"": PLAIN, "bias": BIAS}),
    "ExpandNet": Block(
        chains.ExpandNet,
        {
            "CL": {"kind": "CL"},
            "CL, stride 2": {"kind": "CL", "stride": 2},
            "CL, no bias": {"kind": "CL", "bias": False},
            "CL, 2 groups": {"kind": "CL", "groups": 2},
            "CK": {"kind": "CK"},
            "CK, stride 2": {"kind": "CK", "stride": 2},
        },
    ),
    "SESR": Block(chains.SESR, {"": PLAIN, "5x5": {"kernel_size": 5}, "bias": BIAS}),
    "RepConv without identity": Block(
        branches.RepVGG,
        {
            "": WIDER,
            "2 groups": {**WIDER, **GROUPS},
            "bias": {**WIDER, **BIAS},
            NAKED: {**WIDER, **BARE},
        },
    ),
    "PP-LCNetV3": Block(
        chains.LCNetV3,
        {"": PLAIN, "5x5": {"kernel_size": 5}, "bias": BIAS, NAKED: BARE},
        smallest=3,
    ),
    "PP-LCNetV3 down": Block(chains.LCNetV3, {"stride 2": STRIDE}, target="min-ops"),
    "implicit add and multiply": Block(
        chains.Implicit,
        {"": PLAIN, "no bias": {"bias": False}, "2 groups": GROUPS, NAKED: BARE},
        smallest=3,
    ),
    "Spike-driven RepConv": Block(
        borders.SpikeRepConv,
        {"": PLAIN, "bias": BIAS, NAKED: BARE},
        channels=2,
        target="min-ops",
        export="fixed",
    ),
    "RepSPK": Block(
        branches.RepSPK,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": GROUPS, "bias": BIAS, NAKED: BARE},
        target="min-ops",
    ),
    "LoRA on a Linear": Block(
        chains.LoRALinear,
        {"": PLAIN, "no bias": {"bias": False}},
        sizes=((6,), (5, 6), (7, 3, 6)),
        channels=0,
    ),
    "LoRA on a conv": Block(
        chains.LoRAConv,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": GROUPS, "no bias": {"bias": False}},
    ),
    "decoder": Block(
        chains.Decoder,
        {
            "": PLAIN,
            "2 groups": GROUPS,
            "bias": BIAS,
            NAKED: BARE,
            "3x3, grown by one": {"sizes": (3,)},
            "parallel": {"sizes": (4, 2)},
            "parallel, odd kernels": {"sizes": (5, 3)},
            "parallel, 2 groups": {"sizes": (4, 2, 6), "groups": 2},
        },
    ),
    "norm before an MLP": Block(
        tokens.PreNormMLP,
        {
            "": PLAIN,
            "norm without bias": {"norm": partial(nn.LayerNorm, bias=False)},
            "functional": {"norm": tokens.functional_norm},
        },
        channels=0,
        sizes=TOKENS,
        smallest=5,
        in_file=7,
        export="fixed",
        functional=False,
    ),
    "norm before an MLP, without biases": Block(
        tokens.PreNormMLP,
        {"": {"norm": partial(nn.LayerNorm, bias=False), "bias": False}},
        channels=0,
        sizes=TOKENS,
        smallest=5,
        export="fixed",
        functional=False,
    ),
    "norm before q, k, v": Block(
        tokens.Attention,
        {"": PLAIN, "functional": {"functional": True, "norm": tokens.functional_norm}},
        channels=0,
        sizes=TOKENS,
        smallest=7,
        in_file=13,  # as it was: q has no bias, and an Add for it costs more than one in the norm
        export="fixed",
        functional=False,
    ),
    "RMSNorm, written out, before a Linear": Block(
        tokens.RootedLinear,
        {"": PLAIN},
        smallest=8,
        in_file=10,
        functional=False,
    ),
    "LayerNorm, written out, before a 1x1 conv": Block(
        tokens.NormBeforeConv,
        smallest=10,
        in_file=9,
        functional=False,
    ),
    "GroupNorm before a 1x1 conv": Block(
        tokens.NormBeforeConv,
        {"": {"norm": partial(nn.GroupNorm, 2)}},
        smallest=3,
        functional=False,
    ),
    "ConvNeXt": Block(tokens.ConvNeXt, smallest=6, in_file=10, functional=False),
    "ConvNeXt without biases": Block(
        tokens.ConvNeXt, {"": {"bias": False}}, smallest=6, in_file=8, functional=False
    ),
    "LeViT Linear_BN": Block(
        tokens.LinearNorm,
        {"": PLAIN, "bias": BIAS, "norm without affine": BARE},
        sizes=LINE,
        smallest=4,
        in_file=5,
        functional=False,
    ),
    "batch norm of transposed tokens": Block(
        tokens.NormedTokens,
        {"": PLAIN, "no bias": {"bias": False}, "norm without affine": BARE},
        channels=0,
        sizes=TOKENS,
        in_file=2,
        export="fixed",
        functional=False,
    ),
    "Linear beside a 1x1 conv": Block(
        tokens.LinearBeside,
        {"": PLAIN, "no bias": {"bias": False}, "functional": {"functional": True}},
        functional=False,
    ),
    # The three operators of the gates, one that mixes the kernels, and the conv.
    "dynamic gates": Block(
        gated.GatedBranches,
        {
            "": PLAIN,
            "unbind": {"way": "unbind"},
            "chunk": {"way": "chunk"},
            "split": {"way": "split"},
            "reshape": {"way": "reshape"},
            "stride 2": STRIDE,
            "2 groups": {"groups": 2},
        },
        smallest=5,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
    # One operator more, which mixes the biases.
    "dynamic gates, bias": Block(
        gated.GatedBranches,
        {
            "": BIAS,
            "norms": {"norms": True},
            "norms, depthwise": {"norms": True, "groups": 4},
            "norms, stride 2": {**BIAS, **STRIDE, "norms": True},
        },
        smallest=6,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
    "gates of their own, norm after": Block(
        gated.SharedNorm,
        {"": PLAIN, "no bias": {"bias": False}},
        smallest=10,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
    "gates of their own, norm after, reflect": Block(
        gated.SharedNorm,
        {"": {"mode": "reflect"}},
        smallest=11,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
    "selective kernels": Block(
        gated.ChannelGates,
        {"": PLAIN, "stride 2": STRIDE, "2 groups": {"groups": 2}},
        smallest=10,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
    "dynamic convolution": Block(
        gated.Bank,
        {
            "": PLAIN,
            "stride 2": STRIDE,
            "2 groups, 7 convs": {"groups": 2, "count": 7},
            "pointwise": {"size": 1},
        },
        smallest=5,
        dynamic=True,
        functional=False,
    ),
    "dynamic convolution, bias": Block(
        gated.Bank,
        {"": BIAS, "depthwise": {**BIAS, "groups": 4}},
        smallest=6,
        dynamic=True,
        functional=False,
    ),
    "gates before the convs": Block(
        gated.ScaledInputs,
        {"": PLAIN, "stride 2": STRIDE},
        smallest=8,
        target="min-ops",
        dynamic=True,
        functional=False,
    ),
}
