"""Whole processes: `repfuse-onnx --no-check` beside `onnxsim`, in turn; its peak memory; --help.

    python -m tests.benchmarks.onnx_speed [--bin FOLDER] [FILE.onnx ...]

Without files, five timm networks are exported in four ways, and PP-OCRv4's three are taken along.
--bin names the folder of an environment's commands. onnxsim imports torch where it finds it, so
that an environment without torch, `pip install -c constraints.txt -e ".[onnx]"`, is kinder to it.
Memory is held against 2.5 times the file plus 200 MB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RUNS = 3
FIXED = 200e6


def measure(command: list[str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and the peak memory in bytes of one run; it must succeed."""
    begin = os.times().elapsed
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    wall = os.times().elapsed - begin
    return usage.ru_utime + usage.ru_stime, wall, 1024.0 * usage.ru_maxrss


def in_turn(commands: list[list[str]]) -> list[tuple[float, ...]]:
    """The medians for each command, all run in turn, a first round not counted."""
    rounds = [[measure(command) for command in commands] for _ in range(RUNS + 1)][1:]
    return [tuple(map(median, zip(*runs, strict=True))) for runs in zip(*rounds, strict=True)]


def exported(folder: Path) -> list[Path]:
    from tests.models.exports import export
    from tests.models.ocr import NETWORKS, network
    from tests.models.test_onnx_parity import NETWORKS as EXPORTS
    from tests.models.zoo import build, image

    found = [network(role) for role in NETWORKS]
    for name in EXPORTS:
        models = export(build(name).float(), image(224, batch=1).float(), folder / "scratch")
        for way, model in models.items():
            found.append(folder / f"{name}, {way}.onnx")
            found[-1].write_bytes(model.SerializeToString())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.onnx"
        [(cpu, _, _)] = in_turn([[str(given.bin / "repfuse-onnx"), "--help"]])
        print(f"--help: {cpu:.3f} s of CPU\n")
        print(
            f"{'file':34} {'repfuse-onnx':>13} {'onnxsim':>9} {'ratio':>6} {'memory / bound':>15}"
        )
        for file in given.files or exported(Path(scratch)):
            ours = [str(given.bin / "repfuse-onnx"), str(file), str(out), "--no-check", "-q"]
            theirs = [str(given.bin / "onnxsim"), str(file), str(out)]
            (cpu, wall, peak), (other, other_wall, _) = in_turn([ours, theirs])
            bound = 2.5 * file.stat().st_size + FIXED
            print(
                f"{file.stem:34} {cpu:6.2f} s CPU {other:7.2f} s {cpu / other:6.2f} "
                f"{peak / 1e6:6.0f} MB {peak / bound:5.2f}   wall ratio {wall / other_wall:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
