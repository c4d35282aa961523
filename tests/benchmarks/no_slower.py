"""Whether the default target makes anything slower: blocks and networks, fused against original.

    python -m tests.benchmarks.no_slower             all blocks, then all networks
    python -m tests.benchmarks.no_slower repvgg      those whose name holds the text

Three ratios of CPU time, fused / original, below 1 where the fusion gains: the module in PyTorch's
eager mode, the exported file in ONNX Runtime, and there the export of the fused module, which was
planned for PyTorch. One thread, run in turn, medians. A ratio above 1.03 is measured once more,
with more rounds, before it is marked.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from statistics import median

import onnx
import torch
from torch import Tensor, nn

import repfuse
import tests.torchvision_cpu  # noqa: F401  (before anything imports timm)
from tests.benchmarks.alternatives import alternatives
from tests.benchmarks.timing import eager, exported, in_turn, session
from tests.models.test_timm import NETWORKS
from tests.models.zoo import build

BOUND = 1.03
SIZES = {"convmixer_768_32": 112}  # at 224 one forward takes seconds


def subjects() -> Iterator[tuple[str, Callable[[], nn.Module], Tensor]]:
    """Name, what builds the model, and an input."""
    noise = torch.Generator().manual_seed(0)
    for one in alternatives():
        if one.family.startswith("block: "):
            name = str(one).removeprefix("block: ")
            yield name, one.before, torch.randn(*one.shape, generator=noise)
    for name, (size, *_) in NETWORKS.items():
        side = SIZES.get(name, max(size, 224))
        image = torch.randn(1, 3, side, side, generator=noise)
        yield name, lambda name=name: build(name).float(), image  # type: ignore[misc]


def ratio(fused: Callable[[], object], original: Callable[[], object], rounds: int = 9) -> float:
    ours, theirs = in_turn([fused, original], rounds)
    return ours / theirs


def confirmed(fused: Callable[[], object], original: Callable[[], object]) -> float:
    """The ratio; what looks slower is measured again, longer."""
    first = ratio(fused, original)
    return first if first <= BOUND else ratio(fused, original, 31)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="")
    wanted = parser.parse_args().text
    torch.set_num_threads(1)
    found: list[list[float]] = []
    print(f"{'fused / original':60} {'PyTorch':>8} {'ORT':>8} {'export':>8}")
    for name, make, x in subjects():
        if wanted not in name:
            continue
        model = make().eval()
        fused = repfuse.fuse(copy.deepcopy(model))
        ratios = [confirmed(eager(fused, x), eager(model, x))]
        file = exported(model, x)
        original = session(file, x)
        merged = repfuse.fuse(onnx.load_from_string(file)).SerializeToString()
        ratios.append(confirmed(session(merged, x), original))
        ratios.append(confirmed(session(exported(fused, x), x), original))
        found.append(ratios)
        mark = "   SLOWER" if max(ratios) > BOUND else ""
        print(f"{name:60} {' '.join(f'{one:8.3f}' for one in ratios)}{mark}", flush=True)
    medians = [median(column) for column in zip(*found, strict=True)]
    print(f"{'median':60} {' '.join(f'{one:8.3f}' for one in medians)}")


if __name__ == "__main__":
    main()
