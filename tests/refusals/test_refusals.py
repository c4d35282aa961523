"""Every sentence of a plan has a name, a text, and an example that provokes it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import repfuse
from docs.make_refusals import EXAMPLES, PAGE, bare, sentences, text
from docs.refusals_text import TEXTS, THEMES
from repfuse.reasons import AROUND, REASONS, id_of, template_of
from repfuse.report import Report
from repfuse.rules import Refusal
from tests.frontends.onnx.cases import untouched
from tests.numerics import randomize
from tests.refusals.examples import Example, run

# What looks like a sentence and is none, or only a part of one.
PARTS = {
    "it follows {} ({})", ", which must exist: {},", "is read by {}",
    "({}), which is not linear", "it cannot absorb it", "whose weights {}",
    "parameters whose values {}",
    "{}.{} is not written again: {}", "outside of the model", "the model", "the graph",
    "in place",
    "a transposed conv", "a Linear", "with a kernel mixed of {}",
    "product with a factor of the sample",
}  # fmt: skip
PRINTED = {
    "for a 224 x 224 image", "for an input of {}", "pad by {}", "shuffle of {}", "Select {} of {}",
    "for one sample of the graph's input size", "ONNX model",
    "{} merged: operations {} -> {}, MACs {} -> {} ({}), bytes moved {} -> {}, "
    "parameters {} -> {}, {}; {} refusals", "of the price for {} saved",
    "nothing to merge, {} refusals", "Left alone", "Cheaper as it is", "Not traced as a whole",
    "bytes moved", "{}; not used: {}", "What it means, and what to change: docs/refusals.md {}",
}  # fmt: skip
ERRORS_OF_REPFUSE = {
    "INTERNAL ERROR, left as it is: {}", "is not read: {}",
    "shapes {} and {} at input size {}", "difference {} of {} at input size {}",
    "it does not run on an input of size {}: {}", "there is no size to prove it at",
    "its nodes cannot be ordered after the merge, so it stays",
    "{}, at input size {}", "is not at hand", "does not move the axes as it was taken to",
    "does not have its axes as it was taken to", "reads data of shape {}",
}  # fmt: skip
ERRORS_OF_TRACING = {  # with those of torch, under "Not traced as a whole"
    "its forward is no method of its class",
    "the method computes in a thread of its own",
    "it asks whether a value has the attribute {}",
    "it asks for the class of a value",
    "it asks for the exact type of a value",
    "it makes a text of a recorded value",
    "it looks a recorded value up in a set or a table",
    "it reads the attribute {} of a tensor, which may be None",
    "it asks whether a value is the same object as another one",
    "it matches a value with a pattern",
    "it goes on after an error that real tensors may not raise",
    "{}() argument must be a string or a real number, not '{}'",
}
CODE = {
    "is None", "is not None", "numbers that may be looked at", "_has_keys({}, {})",
    "_has_length({}, {})", "Entry | None",
    "def rewritten(self", "<repfuse dispatch>", "<repfuse imports>",
    "    if {}:\n        return {}",
    "{}, {}, kernel_size={}, stride={}, padding={}, dilation={}, groups={}, branches={}",
}  # fmt: skip
OTHERS = PARTS | PRINTED | ERRORS_OF_REPFUSE | ERRORS_OF_TRACING | CODE
HELP = """a plan may print sentences that docs/refusals.md does not explain. For each of them
  - name it in REASONS of repfuse/reasons.py,
  - say what it means in docs/refusals_text.py, if the name is new,
  - provoke it in tests/refusals/*_examples.py,
  - run python -m docs.make_refusals;
or, if no plan prints it, add it to one of the sets at the top of this file:
"""
TEMPLATES = {template: name for name, found in REASONS.items() for template in found}


def test_every_sentence_of_the_source_has_a_name() -> None:
    known = {bare(template) for template in (*TEMPLATES, *AROUND)} | OTHERS
    missing = [
        f"  {text!r} ({', '.join(w)})" for text, w in sentences().items() if text not in known
    ]
    assert not missing, HELP + "\n".join(missing)


def test_every_name_has_its_sentence_in_the_source() -> None:
    built = {"it follows {}"}  # of several parts
    gone = [t for t in TEMPLATES if bare(t) not in sentences() and t not in built]
    assert not gone, f"nothing says these any more, take them out of repfuse/reasons.py: {gone}"
    assert not OTHERS - set(sentences()), "nothing says these any more, take them out of this file"


def test_every_name_has_a_text_and_every_sentence_an_example() -> None:
    assert set(TEXTS) == set(REASONS), "docs/refusals_text.py and repfuse/reasons.py differ"
    assert {about.theme for about in TEXTS.values()} == set(THEMES)
    provoked = {example.template for example in EXAMPLES}
    assert provoked == set(TEMPLATES), "add examples to tests/refusals/*_examples.py"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == text(), "run: python -m docs.make_refusals"


def said(report: Report) -> list[str]:
    """All sentences of a report, as they are printed."""
    reasons = [entry.reason for entry in report.refusals]
    reasons += [entry.reason for entry in report.kept]
    return [*reasons, *report.untraced.values(), *report.caps]


def outputs(model: nn.Module, example: Example) -> list[Any]:
    """Of two calls, since a forward may change what the next one computes."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    x = torch.randn(example.shape, dtype=example.dtype)
    with torch.no_grad():
        return pytree.tree_leaves([model(x.clone()), model(x.clone())])


def check_module(example: Example) -> Report:
    model: nn.Module = run(example)
    if example.runs:
        model.to(example.dtype)
        if example.dtype is torch.float64 and not isinstance(model, torch.jit.ScriptModule):
            broken = [m.running_var for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            if not any(v is not None and (v < 0).any() for v in broken):
                randomize(model)
    model.train(False)
    before = {name: value.clone() for name, value in state(model).items()}
    plan = repfuse.plan(model, dynamic=example.dynamic)
    fused = plan.apply()
    assert plan.report.errors == []
    assert kinds_of(fused) == kinds_of(model)
    for one in (model, fused):
        assert state(one).keys() == before.keys()
        assert all(same(value, before[name]) for name, value in state(one).items())
    if example.runs:
        ours, theirs = outputs(model, example), outputs(fused, example)
        assert len(ours) == len(theirs) > 0
        for one_, other in zip(ours, theirs, strict=True):
            assert same(one_, other), "the fused model computes something else"
    return plan.report


def kinds_of(model: nn.Module) -> list[str]:
    """The classes of all modules by name; a copied GraphModule gets another one from torch."""
    return [
        "GraphModule" if isinstance(module, fx.GraphModule) else type(module).__name__
        for module in model.modules()
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    lazy = nn.parameter.is_lazy
    return {name: value for name, value in model.state_dict().items() if not lazy(value)}


def same(one: Any, other: Any) -> bool:
    """Bit by bit, NaN included; on the meta device by shape."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.is_meta:
        return other.is_meta and one.shape == other.shape
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_an_example_provokes_its_sentence_and_changes_nothing(example: Example) -> None:
    if example.kind == "none":
        assert example.why
        return
    if example.kind == "pass":
        refusal = run(example)
        assert isinstance(refusal, Refusal) and example.why
        found = [refusal.reason]
    elif example.kind == "torch":
        report = check_module(example)
        found = said(report)
        assert TEMPLATES[example.template] in report.ids
    else:
        model = run(example)
        if example.opset > 6:  # the checker wants of older ones what this builder does not write
            onnx.checker.check_model(model, full_check=True)
        found = said(untouched(model, example.dynamic))
    assert example.template in map(template_of, found), found


def test_most_sentences_are_provoked_by_a_model() -> None:
    kinds = {t: {e.kind for e in EXAMPLES if e.template == t} for t in TEMPLATES}
    assert sum(kind == {"none"} for kind in kinds.values()) <= 13
    assert sum(kind == {"pass"} for kind in kinds.values()) <= 15


# The names of sentences as they are printed.


PRINTED_AS = {
    "random-numbers": "the model.forward is not written again: the trace drew random numbers",
    "is-output": "merged from x on it is one Conv 3x3 8->8: 0.9 times the MACs, 0.8 times the "
    "price, and a must exist: it is an output of the model",
    "costs-more": "merged from x on it is one Linear 8->8: 1.1 times the MACs, 1.2 times the price",
    "weights-used-elsewhere": "Conv2d whose weights are read by the model as well",
    "public-method": "it follows a (Conv 3x3 8->8), which must exist: it passes through "
    "forward_features, which can be called by itself, and it is an output of the model",
    "between-nonlinear": "it follows a (ReLU) and is read by b: the conv pads with zeros where the "
    "shift before it would stand",
    "strides-differ": "stride differs: (1, 1) against (2, 2)",
    "settings-differ": "kernel_size differs: (1, 1) against (2, 2)",
    "": "TypeError: what another library says",
}


@pytest.mark.parametrize("name", PRINTED_AS)
def test_the_name_of_a_printed_sentence(name: str) -> None:
    assert id_of(PRINTED_AS[name]) == name


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_sentence_has_its_own_name(template: str) -> None:
    assert template_of(template.replace("{}", "a1")) == template


def test_a_report_names_what_it_says() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    plan = repfuse.plan(model)
    assert [entry["id"] for entry in plan.report.to_dict()["refusals"]] == ["conv-pads-after-conv"]
    assert str(plan).endswith("docs/refusals.md #conv-pads-after-conv")
    assert "docs/refusals.md" not in str(repfuse.plan(nn.ReLU()))
