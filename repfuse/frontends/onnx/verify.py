"""Compare two ONNX models as functions, by the reference's own rounding error.

The answer is what the reference gives without optimizations. How far rounding alone moves it is
measured: with all of ONNX Runtime's optimizations, and `MOVED_RUNS` times with every float weight
and input moved by up to an ulp at random (whole numbers, often masks, stay). The candidate, without
and with optimizations, may be `factor` times as far from the answer as the furthest of these runs,
plus a few ulps. There is no fixed rtol; `repfuse.rounding` says why these numbers.

Whole numbers, such as an argmax, must be equal. Where the reference's own runs differ in some,
each of their values is right, and `factor` times as many may differ.

Models run one after the other, and external data are mapped and not copied: a comparison takes
about the size of the larger model in memory. ONNX Runtime's optimizations write weights anew; with
more than `HUGE` bytes of them, models run without optimizations only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from repfuse.comparison import Comparison, Output, OutputError, check_factor
from repfuse.errors import NotEquivalentError, RepfuseError
from repfuse.frontends.onnx.inputs import Feeds, derive, given
from repfuse.frontends.onnx.interface import Port, differences, inputs_of, overridable_of
from repfuse.frontends.onnx.noise import Noise
from repfuse.frontends.onnx.sessions import EngineLacksKernel, Runner
from repfuse.frontends.onnx.sizes import rows_of
from repfuse.frontends.onnx.sources import INTEGERS, Source, move_bits, moved, open_source
from repfuse.rounding import FACTOR

__all__ = ["Measurement", "assert_equivalent", "measure", "verify"]

MOVED_RUNS = 6
DRAWS = 3
HUGE = 2**30
ANSWER = "what the reference gives without optimizations"

Model: TypeAlias = ModelProto | str | os.PathLike[str]
Progress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measurement:
    """A comparison and how it was made: the input shapes of each draw, and what ran the models."""

    comparison: Comparison
    draws: tuple[dict[str, tuple[int, ...]], ...] = ()
    engine: str = ""


def verify(
    reference: Model,
    candidate: Model,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    factor: float = FACTOR,
) -> Comparison:
    """Measure how far a candidate is from a reference, each a model or the path of one.

    inputs: arrays by input name, the array of the only input, or a list of several such draws;
    without any, `draws` random ones are made at sizes that the reference runs on. shapes: shapes
    of some inputs, by name. Models whose interfaces differ are not equal. Raises RepfuseError
    where a model cannot be read or the reference cannot be run.
    """
    return measure(
        reference, candidate, inputs, shapes=shapes, seed=seed, draws=draws, factor=factor
    ).comparison


def assert_equivalent(
    reference: Model, candidate: Model, inputs: Any = None, **options: Any
) -> Comparison:
    """Raise NotEquivalentError with the table of errors unless `verify` passes."""
    comparison = verify(reference, candidate, inputs, **options)
    if not comparison.passed:
        raise NotEquivalentError(str(comparison))
    return comparison


def measure(
    reference: Model,
    candidate: Model,
    inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    factor: float = FACTOR,
    progress: Progress | None = None,
) -> Measurement:
    """As `verify`, with how it was done. progress: told (steps done, of how many, what next)."""
    _check_count("draws", draws, 1)
    _check_count("seed", seed, 0)
    check_factor(factor)
    with TemporaryDirectory(prefix="repfuse-") as scratch:
        mine = open_source(reference, "reference", Path(scratch))
        theirs = open_source(candidate, "candidate", Path(scratch))
        if gaps := differences(mine.model, theirs.model):
            rows = [OutputError(name, (), "", note=note) for name, note in gaps]
            return Measurement(Comparison(tuple(rows), ANSWER))
        task = _Task(mine, theirs, seed, factor, progress or (lambda *_: None))
        try:
            feeds = task.feeds(inputs, shapes, draws)
            return task.measure(feeds)
        except EngineLacksKernel as lack:
            task.evaluator = True
            try:
                return task.measure(task.feeds(inputs, shapes, draws))
            except RepfuseError:
                raise lack from None


def _check_count(name: str, number: object, least: int) -> None:
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < least:  # type: ignore[operator]
        raise RepfuseError(f"{name} is {number!r}: give a whole number from {least} on")


@dataclass
class _Task:
    mine: Source
    theirs: Source
    seed: int
    factor: float
    progress: Progress
    evaluator: bool = False
    level: int = 0  # how few weights are moved, of (all, matrices, none): see _move
    ports: list[Port] = field(init=False)
    overridable: list[Port] = field(init=False)

    def __post_init__(self) -> None:
        self.ports = inputs_of(self.mine.model)
        self.overridable = overridable_of(self.mine.model)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Without optimizations, and with them, where that can be done."""
        huge = max(self.mine.outside, self.theirs.outside) > HUGE
        return (False,) if self.evaluator or huge else (False, True)

    def feeds(
        self, inputs: Any, shapes: Mapping[str, Sequence[int]] | None, draws: int
    ) -> list[Feeds]:
        if inputs is not None:
            return given(self.ports, inputs, self.mine.name, self.overridable)
        with Runner(self.mine, evaluator=self.evaluator) as runner:

            def fault(feeds: Feeds) -> str:
                try:
                    outputs = runner.run(feeds)
                except RepfuseError as error:
                    return str(error).removeprefix(f"{self.mine.name} ")
                return "" if any(o.values.size for o in outputs) else "all outputs are empty"

            options: dict[str, Any] = {"shapes": shapes, "seed": self.seed, "draws": draws}
            rows = rows_of(self.mine.model)
            return derive(self.ports, fault, name=self.mine.name, rows=rows, **options)

    def measure(self, feeds: list[Feeds]) -> Measurement:
        steps = 1 + len(self.modes) * 2 + MOVED_RUNS - 1
        self.progress(0, steps, "the reference")
        answers = self._run(self.mine, feeds)
        noise = [Noise(answer) for answer in answers]
        done = 1
        if True in self.modes:
            self.progress(done, steps, "the reference, optimized")
            for one, outputs in zip(noise, self._run(self.mine, feeds, optimize=True), strict=True):
                one.add(outputs)
            done += 1
        for run in range(MOVED_RUNS):
            self.progress(done, steps, f"the reference, moved by rounding ({run + 1})")
            for one, outputs in zip(noise, self._moved(run, feeds, answers), strict=True):
                one.add(outputs)
            done += 1
        found = []
        for optimize in self.modes:
            self.progress(done, steps, f"the candidate{', optimized' if optimize else ''}")
            found.append(self._candidate(feeds, noise, optimize))
            done += 1
        self.progress(done, steps, "done")
        rows = [_worse(pair) for pair in zip(*found, strict=True)]
        shapes = tuple({name: np.shape(value) for name, value in one.items()} for one in feeds)
        engine = f"onnx.reference {onnx.__version__}"
        if not self.evaluator:
            engine = f"ONNX Runtime {ort.__version__}"
        return Measurement(Comparison(tuple(rows), ANSWER), shapes, engine)

    def _run(self, source: Source, feeds: list[Feeds], **options: Any) -> list[list[Output]]:
        with Runner(source, evaluator=self.evaluator, **options) as runner:
            return [runner.run(one) for one in feeds]

    def _moved(
        self, run: int, feeds: list[Feeds], answers: list[list[Output]]
    ) -> list[list[Output]]:
        """The outputs with moved weights and inputs.

        Where a moved weight makes the model fail, or gives other shapes (a size that was computed
        from it), only matrices are moved, and if that does not help, only inputs.
        """
        shapes = [[output.values.shape for output in answer] for answer in answers]
        while True:
            rng = np.random.default_rng([self.seed, run])
            model, weights = moved(self.mine, rng, (0, 2, 99)[self.level])
            others = [self._moved_inputs(one, rng) for one in feeds]
            try:
                found = self._run(self.mine, others, model=model, weights=weights)
            except RepfuseError:
                if self.level == 2:
                    return answers
            else:
                if self.level == 2 or shapes == [[o.values.shape for o in f] for f in found]:
                    return found
            self.level += 1

    def _moved_inputs(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        others = dict(feeds)
        for port in (*self.ports, *self.overridable):
            if port.kind == "tensor" and port.elem in INTEGERS and port.name in feeds:
                values = np.array(feeds[port.name], order="C")
                move_bits(values.view(INTEGERS[port.elem]), port.elem, rng)
                others[port.name] = values
        return others

    def _candidate(
        self, feeds: list[Feeds], noise: list[Noise], optimize: bool
    ) -> list[OutputError]:
        """The errors of all outputs in all draws; not to run where the reference does is one."""
        rows: list[OutputError] = []
        with Runner(self.theirs, optimize=optimize, evaluator=self.evaluator) as runner:
            for index, (one, own) in enumerate(zip(feeds, noise, strict=True)):
                try:
                    errors = own.compare(runner.run(one), self.factor)
                except RepfuseError as fault:
                    errors = own.failures(str(fault))
                prefix = f"draw {index}: " if len(feeds) > 1 else ""
                rows += [replace(error, name=prefix + error.name) for error in errors]
        return rows


def _worse(errors: tuple[OutputError, ...]) -> OutputError:
    """Of an output without and with optimizations the one that is further off."""
    plain, *optimized = errors
    for other in optimized:
        if plain.passed and not other.passed:
            note = other.note or "beyond the tolerance"
            return replace(other, note=f"{note}, with ONNX Runtime's optimizations on")
        if plain.passed == other.passed and other.excess > plain.excess:
            return other
    return plain
