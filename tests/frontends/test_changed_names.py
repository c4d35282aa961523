"""What is changed in place is read by several names: by its own, and by those of before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from tests.frontends import conv
from tests.frontends.test_code import images
from tests.numerics import assert_same, randomize

X = images(0)


class ChangesWhatItIsGiven(nn.Module):
    """The caller goes on with the name that it has given, and with what it gets."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer = how, conv(size=1)

    def forward(self, given: Tensor) -> Tensor:
        if self.how == "a mean":
            given += torch.stack([given, given]).mean(dim=0)
        elif self.how == "itself":
            given += given
        elif self.how == "a layer":
            given += self.layer(given)
        elif self.how == "as a method":
            given.add_(self.layer(given))
        else:
            given.mul_(2)
        return torch.relu(given)


class GivesItAway(nn.Module):
    def __init__(self, how: str, ends: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.child, self.ends = conv(), ChangesWhatItIsGiven(how), ends
        self.a, self.b = conv(), conv(size=1)

    def forward(self, x: Tensor) -> Any:
        made = self.first(x)
        return self.ends(self, made, self.child(made))


def keeps(model: Any, made: Tensor, got: Tensor) -> Tensor:
    model.cache = made
    return got


ENDS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "branches": lambda model, made, got: model.a(made) + model.b(made),
    "a step": lambda model, made, got: torch.sigmoid(made),
    "both": lambda model, made, got: got + model.a(made),
    "returned": lambda model, made, got: made,
    "kept": keeps,
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("how", ["a mean", "itself", "a layer", "as a method", "a number"])
def test_what_a_call_changes_in_place_is_read_by_the_name_it_had(how: str, ends: str) -> None:
    model = randomize(GivesItAway(how, ENDS[ends]).double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert_same(model, fused, X)
    assert len(plan.report.regions) == (ends == "branches") + (how == "a number")
    if ends == "kept":
        fused(X), model(X)
        torch.testing.assert_close(fused.cache, model.cache)


class ChangesItsOwn(nn.Module):
    """All of it in one method, which is written again by what the names mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv(size=1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.a(x)
        made.add_(self.b(x))
        return made


def test_what_a_method_changes_in_place_by_itself_is_merged() -> None:
    model = randomize(ChangesItsOwn().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    assert_same(model, plan.apply(), X)


class ChangedAfterTheLayer(nn.Module):
    """The sum reads the layer's result, and what the layer has read: that is changed since."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.layer, self.terms = nn.Conv2d(4, 4, 1), terms

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(x)
        made: Tensor = self.layer(x)
        x[:] = 0.0
        total: Tensor = sum([made] * self.terms)  # type: ignore[assignment]
        return made, total


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_a_source_that_is_changed_before_what_is_made_of_it_is_summed(terms: int) -> None:
    model = randomize(ChangedAfterTheLayer(terms).double()).eval()
    assert_same(model, repfuse.fuse(model), X[:, :4])
