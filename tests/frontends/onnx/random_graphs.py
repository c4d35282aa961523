"""Seeded random ONNX graphs: linear operators of every form, a few others between them.

Every value knows its channels and its size for each of the tested inputs, so that sums and concats
join what fits, or what broadcasts. By itself: `python -m tests.frontends.onnx.random_graphs 0 5000`
looks for graphs that fuse wrongly, and prints their seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import onnx

from tests.frontends.onnx.cases import fused, same_interface
from tests.frontends.onnx.evaluate import assert_same, in_double
from tests.frontends.onnx.random_voyages import RandomVoyages

__all__ = ["Outcome", "RandomGraph", "check"]


class RandomGraph(RandomVoyages):
    """All moves, each with its weight."""

    def moves(self) -> dict[Callable[[], object], float]:
        both: dict[Callable[[], object], float] = {
            self.block: 5,
            self.join: 3,
            self.constant: 3,
            self.norm: 2,
            self.plain: 2,
            self.concat: 1.5,
            self.part: 1.5,
            self.partial: 0.7,
            self.broadcast: 0.7,
            self.shape: 0.7,
            self.gate: 0.4,
            self.turn: 0.7,
            self.odd: 0.7,
            self.enclosed: 0.6,
            self.voyage: 1,
            self.written: 0.3,
            self.batch_norm: 0.3,
            self.extreme: 0.5,
            self.wider: 0.2,
            self.chosen: 0.3,
            self.clipped: 0.2,
            self.masked: 0.4,
            self.nothing: 0.4,
            self.quantized: 0.2,
            self.foreign: 0.15,
            self.measured: 0.15,
        }
        if not self.rank:
            return {**both, self.matrix: 4, self.adapted: 1, self.product: 2, self.vector: 0.2}
        return {
            **both,
            self.conv: 3,
            self.same: 3,
            self.transposed: 1,
            self.pad: 1,
            self.crop: 0.5,
            self.border: 0.4,
            self.average: 1,
            self.largest: 0.3,
            self.mean_of_all: 0.4,
            self.shuffle: 0.5,
            self.gated: 0.4,
            self.tokens: 1,
            self.window: 1,
            self.back: 0.6,
            self.grouped_norm: 0.2,
            self.spread: 0.3,
            self.framed: 0.5,
            self.samples: 0.4,
        }


@dataclass(frozen=True)
class Outcome:
    """rewritten: whether fusing changed anything; stable: whether a second time does nothing."""

    rewritten: bool
    stable: bool


def check(seed: int, kind: type[RandomGraph] = RandomGraph) -> Outcome:
    """Fuse one graph, and prove the result."""
    graph = kind(seed)
    single = graph.model()
    onnx.checker.check_model(single, full_check=True)
    model = in_double(single)
    result, _ = fused(model)
    onnx.checker.check_model(result, full_check=True)
    same_interface(model, result)
    assert_same(model, result, 1e-9, graph.sizes)
    again, _ = fused(result)
    if again != result:
        assert_same(model, again, 1e-9, graph.sizes)
    return Outcome(result != model, again == result)


def main() -> None:
    first, last = map(int, sys.argv[1:])
    rewritten, unstable, failed = 0, [], 0
    for seed in range(first, last):
        try:
            outcome = check(seed)
        except Exception as error:
            failed += 1
            print(seed, type(error).__name__, str(error)[:300].replace("\n", " "), flush=True)
            continue
        rewritten += outcome.rewritten
        unstable += [] if outcome.stable else [seed]
    print(f"{last - first} graphs, {rewritten} rewritten, {failed} failed, unstable: {unstable}")


if __name__ == "__main__":
    main()
