"""The latency of a fused RepVGG beside the plain network that its authors deploy.

The plain one is a stack of Conv2d and ReLU that was written by hand and has the fused weights, so
that any difference is the cost of what repfuse leaves around its convs. CPU seconds, in turn.

Run it with: python -m tests.benchmarks.deploy_latency
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import repfuse

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"
# Pixels and rounds; where the image is small, Python takes a larger share.
IMAGES = ((32, 100), (224, 30))


class Deployed(nn.Module):
    """RepVGG as it is deployed: a 3x3 conv and a ReLU per block, and a classifier."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 2, 1), nn.ReLU(inplace=True)]
        channels = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            for index in range(depth):
                stride = 2 if index == 0 else 1
                layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU(inplace=True)]
                channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean(dim=(2, 3)))
        return logits


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["quickstart"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conv_shapes(model: nn.Module) -> Counter[tuple[Any, ...]]:
    return Counter(
        (tuple(conv.weight.shape), conv.stride, conv.padding, conv.dilation, conv.groups)
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
    )


def latencies(models: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, float]:
    """The median CPU seconds of a forward; a first one of each is not counted.

    Every other round runs backwards, so that none always finds the caches of the same other one.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name in list(models)[:: 1 if turn % 2 else -1]:
            begin = time.process_time()
            models[name](x)
            taken[name].append(time.process_time() - begin)
    return {name: median(times[1:]) for name, times in taken.items()}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quickstart = load_example()
    widths, depths, classes = (64, 128, 256, 512), (2, 4, 14, 1), 1000
    model = quickstart.RepVGG(widths=widths, depths=depths, classes=classes).eval()
    quickstart.randomize_batch_norm(model)
    fused = repfuse.fuse(model)
    deployed = Deployed(widths, depths, classes).eval()
    assert conv_shapes(fused) == conv_shapes(deployed)
    print(f"the same {conv_shapes(fused).total()} convs")

    # The fused network runs its blocks in the order in which they are registered.
    deployed.load_state_dict(
        dict(zip(deployed.state_dict(), fused.state_dict().values(), strict=True))
    )
    for size, rounds in IMAGES:
        x = torch.randn(1, 3, size, size)
        assert torch.equal(fused(x), deployed(x))
        seconds = latencies({"trained": model, "fused": fused, "deployed": deployed}, x, rounds)
        print(f"{size} x {size}")
        for name, value in seconds.items():
            print(
                f"  {name:8} {1e3 * value:7.2f} ms, it / deployed {value / seconds['deployed']:.3f}"
            )


if __name__ == "__main__":
    main()
