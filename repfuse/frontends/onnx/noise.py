"""How far rounding alone moves the outputs of a model, and what that allows a candidate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from repfuse.comparison import FLIPPING, Output, OutputError, compare, kinds
from repfuse.rounding import distance

__all__ = ["Noise"]


class Noise:
    """The answer to one draw, and how far rounding alone moves each output of it."""

    def __init__(self, answers: list[Output]) -> None:
        self.answers = answers
        self.rounding = {answer.name: 0.0 for answer in answers}
        self.seen: dict[str, list[npt.NDArray[Any]]] = {}
        self.kinds: dict[str, npt.NDArray[Any]] = {}  # of floats: where they were NaN or infinite

    def add(self, outputs: list[Output]) -> None:
        there = {output.name: output.values for output in outputs}
        for answer in self.answers:
            if answer.name not in there:
                continue
            values, so_far = there[answer.name], self.rounding[answer.name]
            if answer.is_float:
                self.rounding[answer.name] = max(so_far, distance(values, answer.values))
                if values.shape == answer.values.shape:
                    earlier = self.kinds.get(answer.name, np.uint8(0))
                    self.kinds[answer.name] = kinds(values) | earlier
            elif values.shape == answer.values.shape:
                flips = int(np.sum(np.asarray(values != answer.values, dtype=bool)))
                self.rounding[answer.name] = max(so_far, float(flips))
                if flips:
                    self.seen.setdefault(answer.name, []).append(values)

    def compare(self, candidates: list[Output], factor: float) -> list[OutputError]:
        right = [self._nearest(answer, candidates) for answer in self.answers]
        found = compare(
            right,
            self.answers,
            candidates,
            factor=factor,
            rounding=self.rounding,
            seen=self.kinds,
        )
        return list(found.outputs)

    def failures(self, note: str) -> list[OutputError]:
        return [
            OutputError(one.name, one.values.shape, one.precision, note=note)
            for one in self.answers
        ]

    def _nearest(self, answer: Output, candidates: list[Output]) -> Output:
        """The answer; of whole numbers that rounding changes, the candidate's if it is one seen.

        Not where rounding changes many: then anything may have been seen.
        """
        values = answer.values
        if self.rounding[answer.name] > max(1.0, FLIPPING * values.size):
            return answer
        for candidate in candidates:
            if candidate.name == answer.name and candidate.values.shape == values.shape:
                for seen in self.seen.get(answer.name, ()):
                    values = np.where(candidate.values == seen, seen, values)
        return replace(answer, values=values)
