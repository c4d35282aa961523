"""docs/cost-model.md and its picture say what the prices in repfuse/cost.py predict now."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs import make_cost_model
from docs.make_cost_model import PAGE, PICTURE, RUNTIMES, Point, _is_right, draw, page, points
from repfuse.cost import ALLOWANCE, MARGIN
from tests.benchmarks.cost_model import Prediction

EXACTLY = 1 + 1e-9


@pytest.fixture(scope="module")
def found() -> dict[str, list[Point]]:
    return points()


def test_the_page_is_as_its_script_writes_it(found: dict[str, list[Point]]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(found), "run: python -m docs.make_cost_model"


def counts(picture: Path) -> dict[str, int]:
    """The points of each group of a picture."""
    groups = ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}g")
    names = re.compile(rf"({'|'.join(RUNTIMES)})-(right|wrong)")
    return {
        group.attrib["id"]: len(list(group.iter("{http://www.w3.org/2000/svg}use")))
        for group in groups
        if names.fullmatch(group.attrib.get("id", ""))
    }


def test_the_picture_shows_every_alternative(found: dict[str, list[Point]], tmp_path: Path) -> None:
    expected = {
        f"{runtime}-{name}": sum(_is_right(point) == right for point in found[runtime])
        for runtime in RUNTIMES
        for name, right in (("right", True), ("wrong", False))
    }
    assert counts(PICTURE) == expected
    draw(found, tmp_path / "one.svg")
    draw(found, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert counts(tmp_path / "one.svg") == expected


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_default_takes_the_faster_form(found: dict[str, list[Point]], runtime: str) -> None:
    """95 % of the alternatives that differ by more than noise, also of those held out."""
    for part in (found[runtime], found[runtime][1::2]):
        differing = [point for point in part if point.differs]
        assert len(differing) >= 60
        assert sum(point.hit for point in differing) >= 0.95 * len(differing)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_merge_that_is_taken_is_slower(found: dict[str, list[Point]], runtime: str) -> None:
    for point in found[runtime]:
        if not point.predicted.picked:
            continue
        assert point.measured < make_cost_model.DIFFERS, point
        if point.predicted.macs > EXACTLY:
            assert point.measured < 1, point
            assert point.predicted.macs <= ALLOWANCE
            assert point.predicted.ratio <= 1 - MARGIN


def test_a_hit_is_told_from_a_miss() -> None:
    merged = Point("one", 0.5, Prediction(0.6, 1.0, True))
    slower = replace(merged, measured=1.5)
    left = replace(merged, predicted=Prediction(0.6, 7.0, False))
    assert [point.hit for point in (merged, slower, left)] == [True, False, False]
    assert [point.foreseen for point in (merged, slower, left)] == [True, False, True]
    assert not replace(merged, measured=1.04).differs
    assert replace(merged, measured=math.nextafter(1 / 1.05, 0)).differs
