"""How much memory `fuse(model, inplace=True)` takes on top of the model: the rise of the peak RSS.

The bound is four times the float64 weights of the largest layer, and 100 MB for code and small
objects. Each case runs in a process of its own, on Linux. Exits with an error beyond the bound.

Run it with: python -m tests.benchmarks.inplace_memory
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import repfuse
from tests.benchmarks.stack_speed import Block
from tests.numerics import randomize

BLOCKS, CHANNELS = 40, 512
FIXED = 100e6
BOUND = 4 * 8 * 9 * CHANNELS**2 + FIXED
# name: (inplace, probe, whether the bound holds for it)
CASES = {
    "in place, probed": (True, True, True),
    "in place": (True, False, True),
    "a copy, probed": (False, True, False),
    "a copy": (False, False, False),
}


def measure(name: str) -> dict[str, float]:
    """Fuse a stack of blocks in this process; bytes of the model, and of the rise."""
    inplace, probe, _ = CASES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = randomize(nn.Sequential(*(Block(CHANNELS) for _ in range(BLOCKS))).eval())
    size = sum(tensor.nbytes for tensor in model.state_dict().values())

    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on the present size
    before = resident("VmRSS")
    fused = repfuse.fuse(model, inplace=inplace, probe=probe)
    rise = resident("VmHWM") - before
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == BLOCKS
    assert (fused is model) == inplace
    return {"model": size, "rise": rise}


def resident(field: str) -> int:
    """A size in bytes from the kernel's status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(kilobytes)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    print(f"{BLOCKS} blocks of {CHANNELS} channels, bound {BOUND / 1e6:.0f} MB")
    exceeded = []
    for name, (_, _, bounded) in CASES.items():
        command = [sys.executable, "-m", "tests.benchmarks.inplace_memory", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        verdict = f", {found['rise'] / BOUND:.2f} of the bound" if bounded else ""
        print(
            f"  {name:17} model {found['model'] / 1e6:.0f} MB, "
            f"peak RSS + {found['rise'] / 1e6:.0f} MB{verdict}"
        )
        if bounded and found["rise"] > BOUND:
            exceeded.append(name)
    if exceeded:
        raise SystemExit(f"beyond the bound: {'; '.join(exceeded)}")


if __name__ == "__main__":
    main()
