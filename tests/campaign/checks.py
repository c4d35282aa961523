"""What must hold of a fused network, asked of one random network at a time."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import repfuse
from repfuse.report import Report
from tests.campaign.files import check_file
from tests.campaign.gaps import BOUND, fresh, gap, largest, outputs, refused
from tests.campaign.methods import compared, method_calls
from tests.campaign.outcome import ALL, Outcome, Share, Wrong, note
from tests.campaign.program import Program
from tests.campaign.promises import broken, in_module
from tests.models.exports import silent

__all__ = ["check"]

SLACK = {"float64": 1e-10, "float32": 1e-5, "float16": 0.05}  # of what cancels, by the dtype


def check(program: Program, share: Share = ALL) -> Outcome:
    """Fuse one network; raises Wrong, naming what does not hold.

    The network itself must run: what it raises is passed on.
    """
    with warnings.catch_warnings(), silent():
        warnings.simplefilter("ignore")
        model, inputs = program.build(), program.inputs()
        exact = replace(program, options=replace(program.options, dtype="float64")).build()
        expected = [outputs(exact, x) for x in inputs]
        return _Check(program, share, model, inputs, expected, largest(exact, inputs)).run(exact)


@dataclass
class _Check:
    program: Program
    share: Share
    model: nn.Module
    inputs: list[Tensor]
    expected: list[list[Any]]
    scale: float
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, exact: nn.Module) -> Outcome:
        model, options = self.model, self.program.options
        state, shape = _state(model), _shape(model)
        try:
            plan = repfuse.plan(model, **options.planned())
            said = plan.report.to_dict()
            fused = plan.apply()
        except Exception as error:
            raise Wrong("raises", f"{type(error).__name__}: {error}") from error
        report = plan.report
        if report.errors:
            raise Wrong("a rewrite failed its probe", report.errors[0])
        if report.to_dict() != said:
            raise Wrong("the plan says something else once it was applied", said)
        self._unchanged(state, shape)
        if not isinstance(fused, type(model)):
            raise Wrong("the class is another", type(fused))
        if options.dtype == "float64":
            self._equal(fused, "not equal")
            self._methods(exact, fused)
        else:
            self._rounded(fused)
        self._promised(report, fused)
        self._settled(fused)
        if self.share.again:
            self.outcome.done["planned twice"] += 1
            if repfuse.plan(model, **options.planned()).report.to_dict() != said:
                raise Wrong("a second plan of the same says something else", said)
        if options.inplace:
            self._in_place(model, report)
        if options.dtype == "float64":
            self._dearer(exact, fused)
        note(self.outcome, report)
        return self.outcome

    def _unchanged(self, state: dict[str, Tensor], shape: object) -> None:
        if _shape(self.model) != shape:
            raise Wrong("the original has other parts", shape)
        for key, value in _state(self.model).items():
            if not torch.equal(value, state[key]):
                raise Wrong("the original changed", key)
        if self.program.options.dtype == "float64":
            again = outputs(self.model, self.inputs[0])
            if not gap(self.expected[0], again) == 0.0:
                raise Wrong("the original gives something else", gap(self.expected[0], again))

    def _equal(self, fused: nn.Module, kind: str) -> None:
        for x, reference in zip(self.inputs, self.expected, strict=True):
            try:
                found = outputs(fused, x)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                raise Wrong("the fused network raises", text) from error
            apart = gap(reference, found, self.scale)
            if not apart <= BOUND:
                raise Wrong(kind, f"{apart:.3g} at {tuple(x.shape)}")

    def _methods(self, exact: nn.Module, fused: nn.Module) -> None:
        """What else users may call means what it meant, or says that it does not."""
        for call in method_calls(exact, self.inputs[0]):
            self.outcome.done["other methods"] += 1
            if fault := compared(exact, fused, call, self.scale):
                kind = "raises" if "Error" in fault else "is not equal"
                raise Wrong(f"another method {kind}", fault)

    def _rounded(self, fused: nn.Module) -> None:
        """In a lower precision: dtypes are kept, and it is no further off than rounding."""
        dtype = getattr(torch, self.program.options.dtype)
        self.outcome.done[self.program.options.dtype] += 1
        for key, value in fused.state_dict().items():
            if value.is_floating_point() and value.dtype != dtype:
                raise Wrong("the dtype of a weight is another", f"{key}: {value.dtype}")
        self._verified(self.model, fused, [x.to(dtype) for x in self.inputs])

    def _verified(self, model: nn.Module, fused: nn.Module, inputs: list[Tensor]) -> None:
        try:
            found = repfuse.verify(fresh(model), fresh(fused), inputs)
        except repfuse.RepfuseError as error:
            if "candidate" not in str(error):
                raise  # the network itself does not run
            raise Wrong("repfuse.verify cannot run it", error) from error
        slack = SLACK[self.program.options.dtype] * self.scale
        if fault := refused(found, slack):
            raise Wrong("repfuse.verify does not accept it", fault)

    def _promised(self, report: Report, fused: nn.Module) -> None:
        """The fused network runs what the plan says."""
        x = self.inputs[0].to(getattr(torch, self.program.options.dtype))
        if not report.regions:
            if _work(fused) != _work(self.model):
                raise Wrong("the plan has no region, and something changed", _work(fused))
            return
        if not _all_run(fresh(self.model), x):
            return  # of what is behind a branch, nothing can be counted
        fault = broken(report, in_module(fresh(self.model), x), in_module(fresh(fused), x))
        if fault:
            raise Wrong("the plan says something else than was done", fault)

    def _settled(self, fused: nn.Module) -> None:
        """A second time there is nothing to do."""
        again = repfuse.plan(fused, **self.program.options.planned())
        if not again.report.regions:
            return
        self.outcome.unsettled = "dead code" if self.program.dead() else "other"
        if self.program.options.dtype == "float64":
            self._equal(again.apply(), "fused twice, not equal")

    def _in_place(self, model: nn.Module, report: Report) -> None:
        own = copy.deepcopy(model)
        changed = repfuse.fuse(own, inplace=True, **self.program.options.planned())
        if changed is not own:
            raise Wrong("fused in place, and another object", type(changed))
        if self.program.options.dtype == "float64":
            self._equal(changed, "fused in place, not equal")

    def _dearer(self, exact: nn.Module, fused: nn.Module) -> None:
        done = self.outcome.done
        if self.share.sizes:
            done["other sizes"] += 1
            self._sizes(exact, fused)
        if self.share.verified:
            done["repfuse.verify"] += 1
            self._verified(exact, fused, self.inputs[:1])
        if self.share.exported:
            done.update(check_file(exact, fused, self.inputs, self.scale))

    def _sizes(self, model: nn.Module, fused: nn.Module) -> None:
        """An empty batch, and sizes at which nothing was written, where the original runs."""
        shape = self.program.shapes[0]
        larger = tuple(n + 2 if n != shape[1] else n for n in shape[2:])
        for tried in ((0, *shape[1:]), (2, shape[1], *larger)):
            x = torch.randn(tried, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            try:
                reference = outputs(model, x)
            except Exception:
                continue
            try:
                found = outputs(fused, x)
            except Exception as error:
                text = f"{tried}: {type(error).__name__}: {error}"
                raise Wrong("the fused network raises at another size", text) from error
            apart = gap(reference, found, self.scale)
            if not apart <= BOUND:
                raise Wrong("not equal at another size", f"{apart:.3g} at {tried}")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _shape(model: nn.Module) -> object:
    """What a module is made of: attributes, submodules and hooks."""
    modules = list(model.named_modules())
    return [
        (name, type(one), sorted(one.__dict__), one.training, len(one._forward_hooks))
        for name, one in modules
    ]


def _all_run(model: nn.Module, x: Tensor) -> bool:
    """Whether each layer with weights runs, or is read."""
    called: set[int] = set()

    def note(module: nn.Module, given: Any) -> None:
        called.add(id(module))

    watched = [m for m in model.modules() if not list(m.children()) and list(m.parameters())]
    hooks = [module.register_forward_pre_hook(note) for module in watched]
    outputs(model, x)
    for hook in hooks:
        hook.remove()
    return called >= {id(module) for module in watched}


def _work(model: nn.Module) -> Counter[str]:
    """Its layers by class."""
    return Counter(
        type(module).__name__ for module in model.modules() if not list(module.children())
    )
