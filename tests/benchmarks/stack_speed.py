"""How the time of `fuse` grows with the model, in CPU seconds per block of a stack.

Blocks have RepVGG's three branches, with torch's batch norm, which is read as it is, and with
timm's, which is traced into. Each stack is fused with Python's garbage collector switched off and
on: one full collection looks at everything that the process holds, the modules of torch and timm
among it, and falls into the runs of some sizes and not of others. Exits with an error where, with
the collector off, a block costs more than LIMIT times as much in one stack as in another.

Run it with: python -m tests.benchmarks.stack_speed
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import repfuse
import tests.torchvision_cpu  # noqa: F401  (before timm)
from tests.numerics import randomize

SIZES = (25, 100, 400)
CHANNELS = 16
RUNS = 5
LIMIT = 1.5


class Block(nn.Module):
    """A 3x3 conv, a 1x1 conv and the input, each with a batch norm, and a ReLU of the sum."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        thin = nn.Conv2d(channels, channels, 1, bias=False)
        self.wide = nn.Sequential(wide, norm(channels))
        self.thin = nn.Sequential(thin, norm(channels))
        self.skip = norm(channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.wide(x) + self.thin(x) + self.skip(x))
        return activated


def stack(size: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomize(nn.Sequential(*(Block(CHANNELS, norm) for _ in range(size))).eval())


def seconds_per_block(norm: Callable[[int], nn.Module], collecting: bool) -> dict[int, float]:
    """Medians over runs in turn; the first round warms up."""
    stacks = {size: stack(size, norm) for size in SIZES}
    taken: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(RUNS + 1):
        for size, model in stacks.items():
            gc.collect()
            with collector(collecting):
                begin = time.process_time()
                fused = repfuse.fuse(model, probe=False)
                taken[size].append((time.process_time() - begin) / size)
            assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == size
    return {size: median(times[1:]) for size, times in taken.items()}


@contextmanager
def collector(running: bool) -> Iterator[None]:
    try:
        if not running:
            gc.disable()
        yield
    finally:
        gc.enable()


def main() -> None:
    from timm.layers import BatchNormAct2d

    torch.set_num_threads(1)
    norms: dict[str, Callable[[int], nn.Module]] = {
        "torch BatchNorm2d": nn.BatchNorm2d,
        "timm BatchNormAct2d": partial(BatchNormAct2d, apply_act=False),
    }
    beyond = []
    for name, norm in norms.items():
        for collecting in (False, True):
            seconds = seconds_per_block(norm, collecting)
            ratio = max(seconds.values()) / min(seconds.values())
            print(f"{name}, garbage collector {'on' if collecting else 'off'}")
            for size, value in seconds.items():
                print(f"  {size:4} blocks {1e3 * value:6.2f} ms per block")
            print(f"  largest / smallest {ratio:.2f}")
            if ratio > LIMIT and not collecting:
                beyond.append(name)
    if beyond:
        raise SystemExit(f"the time per block grows by more than {LIMIT}: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
