"""README, docs and docstrings: their code runs, and what is generated is up to date."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from docs import make_outputs, make_passes, make_table
from repfuse.passes import PASSES

ROOT = Path(__file__).parents[1]
README, CHINESE = ROOT / "README.md", ROOT / "docs" / "README.zh-CN.md"
COMMANDS = [
    'pip install -c constraints.txt -e ".[all]" && python examples/quickstart.py\n',
    'pip install -c constraints.txt -e ".[test]" && pytest -n 2\n',
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", make_outputs.PAGES, ids=name_of)
def test_code_runs_and_prints_what_the_page_shows(page: Path) -> None:
    assert make_outputs.run(page) == make_outputs.blocks(page)


@pytest.mark.parametrize("page", [README, CHINESE], ids=name_of)
def test_setup_commands_are_the_two(page: Path) -> None:
    assert [text for language, text in make_outputs.blocks(page) if language == "bash"] == COMMANDS


def test_ci_runs_the_setup_and_the_tests_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(COMMANDS[1].strip().split(" && ")) <= set(lines)


def test_both_languages_have_the_same_code_outputs_and_headings() -> None:
    assert make_outputs.blocks(CHINESE) == make_outputs.blocks(README)
    levels = [re.findall(r"^#+", page.read_text("utf-8"), re.M) for page in (README, CHINESE)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("page", [*make_outputs.PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    prose = make_outputs.BLOCK.sub("", page.read_text("utf-8"))
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "page", [page for page in make_outputs.PAGES if page != CHINESE], ids=name_of
)
def test_english_pages_are_plain_and_narrow(page: Path) -> None:
    """No lines above 100 columns but those of tables and of printed output."""
    prose = make_outputs.BLOCK.sub("", page.read_text("utf-8")).splitlines()
    assert [line for line in prose if len(line) > 100 and not line.startswith("|")] == []


def test_outputs_of_a_page_are_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "utf-8")
    assert make_outputs.run(page) == [("python", "print(1 + 1)\n"), ("text", "2\n")]


# ---------------------------------------------------------------------------------- generated text


def test_the_table_of_passes_is_current() -> None:
    message = "run: python -m docs.make_passes"
    assert make_passes.PAGE.read_text("utf-8") == make_passes.text(), message


def test_both_tables_hold_every_network() -> None:
    rows = make_table.rows_of(README)
    assert list(rows) == list(make_table.MODELS)
    assert make_table.rows_of(CHINESE) == rows


@pytest.mark.parametrize("name", ["resnet18", "lcnetv2_small", "repghostnet_050"])
def test_rows_of_the_table_are_current(name: str) -> None:
    counts, _, committed = make_table.rows_of(README)[name].rpartition("< ")
    row = make_table.measure(name)
    assert str(row).startswith(counts), "run: python -m docs.make_table"
    assert row.error < float(committed.strip(" |"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "densenet121"])
def test_larger_rows_of_the_table_are_current(name: str) -> None:
    test_rows_of_the_table_are_current(name)


def test_densenet_keeps_the_norms_that_the_readme_counts() -> None:
    import timm

    with torch.device("meta"):
        report = repfuse.plan(timm.create_model("densenet121")).report
    norms = [one for one in report.refusals if one.what.startswith("Affine")]
    assert len({one.where for one in norms}) == 62
    assert "62" in README.read_text("utf-8")
    assert all("which is not linear" in one.reason for one in norms)


# ------------------------------------------------------------------------------- the refusal table


class Branches(nn.Module):
    """Two layers and how they are joined."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Callable[..., object]) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.join = join

    def forward(self, x: Tensor) -> object:
        return self.join(self.first, self.second, x)


def conv(kernel_size: int = 3, padding: int = 1, groups: int = 1, mode: str = "zeros") -> nn.Conv2d:
    settings: Any = {"padding": padding, "groups": groups, "padding_mode": mode}
    return nn.Conv2d(8, 8, kernel_size, **settings)


def add(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    return first(x) + second(x)


def concatenate(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    return torch.cat([first(x), second(x)], 1)


def return_both(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    y = first(x)
    return y, second(y)


def call_twice(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    return first(second(first(x)).relu())


def change_a_view(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    y = first(x)
    y[:, :4].mul_(2.0)
    return second(y)


def read_a_weight(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    weight: Any = first.weight
    return second(first(x)), weight.norm()


def ask_for_a_type(first: nn.Module, second: nn.Module, x: Tensor) -> object:
    return second(first(x[0] if isinstance(x, list) else x))


class Embedding(Branches):
    """A model with a method that forward does not call."""

    def __init__(self) -> None:
        super().__init__(conv(), nn.BatchNorm2d(8), lambda first, second, x: second(first(x)))

    def embed(self, x: Tensor) -> object:
        return self.first(x)


class EarlyExit(nn.Module):
    """Data decides how many of the layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> object:
        return self.layers[:1](x) if x.mean() > 1 else self.layers(x)


def listed() -> nn.Module:
    model = Branches(conv(), nn.BatchNorm2d(8), lambda first, second, x: second(first(x)))
    everything: Any = model
    everything.norms = [model.second]
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    model[0].register_forward_hook(lambda module, args, output: None)
    return model


def infinite() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    with torch.no_grad():
        for weight in model[0].parameters():
            weight[0] = float("inf")
    return model


# In the order of the table's rows.
REFUSED: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(conv(), conv()),
    lambda: Branches(conv(), nn.AvgPool2d(3, 1, 1, count_include_pad=False), add),
    lambda: Branches(nn.Conv2d(8, 8, 2, 2), nn.AvgPool2d(2, 2, ceil_mode=True), add),
    lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()),
    lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), conv()),
    lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)),
    lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
    lambda: Branches(conv(padding=0), conv(1, 0), add),
    lambda: Branches(conv(), conv(mode="reflect"), add),
    lambda: Branches(conv(groups=8), conv(groups=8), concatenate),
    lambda: Branches(conv(), nn.BatchNorm2d(8), return_both),
    lambda: Branches(conv(), nn.BatchNorm2d(8), call_twice),
    hooked,
    lambda: Branches(conv(), nn.BatchNorm2d(8), change_a_view),
    lambda: Branches(conv(), nn.BatchNorm2d(8), read_a_weight),
    listed,
    Embedding,
    EarlyExit,
    lambda: Branches(conv(), nn.BatchNorm2d(8), ask_for_a_type),
    infinite,
]


def printed_reasons(page: Path) -> list[str]:
    """The third column of the table of refusals."""
    rows = [line.split(" | ") for line in page.read_text("utf-8").splitlines()]
    return [row[2].strip("` |") for row in rows if len(row) == 3 and row[2].startswith("`")]


def test_both_languages_quote_the_same_reasons() -> None:
    assert len(printed_reasons(README)) == len(REFUSED)
    assert printed_reasons(CHINESE) == printed_reasons(README)


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_a_refusal_reads_as_the_readme_quotes_it(row: int) -> None:
    quoted = re.escape(printed_reasons(README)[row]).replace("…", ".*")
    model = REFUSED[row]().eval()
    before = [str(module) for module in model.children()]

    plan = repfuse.plan(model)
    fused = plan.apply()

    reasons = [str(refusal) for refusal in plan.report.refusals]
    assert any(re.search(quoted, reason) for reason in reasons), reasons
    assert [str(module) for module in fused.children()] == before


# --------------------------------------------------------------- what else the README says in words


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gated, self.pointwise, self.wide = conv(), conv(1, 0), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True).sigmoid()
        total: Tensor = self.gated(x) * gate + self.pointwise(x) + self.wide(x)
        return total


def test_the_other_terms_of_a_sum_with_a_gated_branch_are_merged() -> None:
    plan = repfuse.plan(Gated())
    assert len(plan.report.regions) == 1
    (refusal,) = plan.report.refusals
    assert "dynamic=True" in refusal.reason
    left = [module for module in plan.apply().modules() if isinstance(module, nn.Conv2d)]
    assert len(left) == 2


def test_a_depthwise_conv_before_a_pointwise_one_is_cheaper_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.Conv2d(64, 64, 1))
    text = str(repfuse.plan(model))
    assert "Cheaper as it is" in text
    assert "times the MACs" in text


class Undecided(nn.Module):
    """Its control flow depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        fused: Tensor = self.block(x)
        return fused if x.sum() > 0 else x


def test_children_of_what_cannot_be_traced_are_tried() -> None:
    plan = repfuse.plan(Undecided())
    assert "Not traced as a whole" in str(plan)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plan.apply().modules())


def test_an_unbatched_call_of_a_stacked_region_is_outside_of_the_guarantee() -> None:
    model = Branches(conv(), conv(), concatenate)
    fused = repfuse.fuse(model)
    batched, unbatched = torch.randn(2, 8, 6, 6), torch.randn(8, 6, 6)
    assert fused(batched).shape == model(batched).shape == (2, 16, 6, 6)
    assert (model(unbatched).shape, fused(unbatched).shape) == ((8, 12, 6), (16, 6, 6))


@pytest.mark.parametrize(("before", "merged"), [((), 0), ((nn.Flatten(1),), 1)])
def test_batch_norm_1d_is_folded_where_its_input_is_a_matrix(
    before: tuple[nn.Module, ...], merged: int
) -> None:
    model = nn.Sequential(*before, nn.Linear(8, 8), nn.BatchNorm1d(8))
    assert len(repfuse.plan(model).report.regions) == merged


def test_a_fused_state_dict_fits_a_model_built_on_the_meta_device() -> None:
    build: Callable[[], nn.Module] = lambda: nn.Sequential(conv(), nn.BatchNorm2d(8))  # noqa: E731
    fused = repfuse.fuse(build())
    with torch.device("meta"):
        built = build()
    loaded = repfuse.fuse(built)
    loaded.load_state_dict(fused.state_dict(), assign=True)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(loaded(x), fused(x))


def test_a_model_in_train_mode_keeps_its_mode_and_gives_the_eval_form() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8)).train()
    fused = repfuse.fuse(model)
    assert model.training
    assert not any(module.training for module in fused.modules())
    repfuse.assert_equivalent(model.eval(), fused, torch.randn(2, 8, 6, 6))


# ------------------------------------------------------------------------- examples and docstrings


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    """As the README calls it, but for --fast; test_quickstart.py looks into its parts."""
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--fast"]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Fused and equal" in done.stdout
    assert (tmp_path / "fused_repvgg.pt").exists()


def modules() -> list[str]:
    found = pkgutil.walk_packages(repfuse.__path__, "repfuse.")
    return ["repfuse", *(module.name for module in found)]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_pass_is_among_the_modules_with_checked_docstrings() -> None:
    assert {f"repfuse.passes.{rule.name}" for rule in PASSES} <= set(modules())
