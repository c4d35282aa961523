"""How long `fuse` takes beside torch.fx's and timm's conversions, in turn, in CPU seconds.

Run it with: python -m tests.benchmarks.fuse_speed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import repfuse
import tests.torchvision_cpu  # noqa: F401  (before timm)
from tests.numerics import randomize

RUNS = 5


def in_turn(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median of the CPU seconds of each candidate, all run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(RUNS + 1):
        for name, run in candidates.items():
            begin = time.process_time()
            run()
            taken[name].append(time.process_time() - begin)
    return {name: median(times[1:]) for name, times in taken.items()}


def main() -> None:
    import timm
    from timm.utils import reparameterize_model
    from torch.fx.experimental import optimization

    torch.set_num_threads(1)
    for network in ("repvgg_a0", "mobileone_s0"):
        model: nn.Module = randomize(timm.create_model(network).eval())
        candidates: dict[str, Callable[[], object]] = {
            "repfuse": lambda model=model: repfuse.fuse(model, probe=False),  # type: ignore[misc]
            "repfuse, probed": lambda model=model: repfuse.fuse(model),  # type: ignore[misc]
            "torch.fx": lambda model=model: optimization.fuse(model),  # type: ignore[misc]
            "timm": lambda model=model: reparameterize_model(model),  # type: ignore[misc]
        }
        seconds = in_turn(candidates)
        own = seconds["repfuse"]
        print(network)
        for name, value in seconds.items():
            print(f"  {name:16} {value:.3f} s, repfuse / it {own / value:.2f}")


if __name__ == "__main__":
    main()
