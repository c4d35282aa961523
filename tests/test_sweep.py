"""The sweep over the zoos can fail and goes on where it was; docs/zoo.md says what it found."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

import repfuse
from docs import make_zoo
from docs.make_zoo import FOLDER, PAGE, PICTURE
from tests.frontends.onnx.build import Net
from tests.sweep import __main__ as command
from tests.sweep import exported
from tests.sweep.check import check, measure, size_of
from tests.sweep.exported import EXPORTERS, check_export, judge, sample
from tests.sweep.families import Subject, names
from tests.sweep.process import in_process
from tests.sweep.rows import ExportRow, Row, append, read, write

LIMITS: dict[str, Any] = {"seconds": 300.0, "memory": 12.0}

# Some of the models, really.


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("timm", "repghostnet_050"),
        ("timm", "levit_128s"),
        ("timm", "test_vit"),
        ("torchvision", "mnasnet0_5"),
    ],
)
def test_models_of_the_zoos(family: str, name: str) -> None:
    row = in_process(check, family, name, 150.0, **LIMITS)
    assert isinstance(row, Row), row
    assert (row.model, row.status, row.detail) == (name, "equal", "")
    assert float(row.error) < 1e-13
    before, after = map(int, row.work.split(" -> "))
    assert after <= before
    if name in ("repghostnet_050", "levit_128s"):  # with a conversion of their own
        assert after < int(row.hand_written) < before
        assert float(row.hand_written_error) < 1e-6


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_model_through_onnx(exporter: str) -> None:
    row = in_process(check_export, "timm", "test_byobnet", exporter, 50.0, **LIMITS)
    assert isinstance(row, ExportRow), row
    assert (row.key, row.status, row.detail) == (f"test_byobnet {exporter}", "equal", "")
    assert row.norms.endswith(" -> 0") and not row.norms.startswith("0 ")
    assert 0 < float(row.error) < 1e-5


def test_a_model_above_the_limit_is_left_out() -> None:
    for row in (
        check("timm", "test_resnet", 0.1),
        check_export("timm", "test_resnet", "TorchScript", 0.1),
    ):
        assert row.status == "skipped" and 0.1 < row.parameters < 1


def test_every_constructor_is_listed_once() -> None:
    for family, least in (("timm", 1000), ("torchvision", 100)):
        listed = names(family)
        assert len(listed) == len(set(listed)) > least
        size = size_of(family, listed[0])
        assert size is not None and size > 1


def test_the_sample_has_a_model_of_every_file_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    files = {home: set(timm.list_models(module=home)) for home in timm.list_modules()}
    large = {name for name in names("timm") if "large" in name}
    monkeypatch.setattr(exported, "size_of", lambda _, name: 90.0 if name in large else 5.0)
    found = sample(120, 50.0)
    assert found == sample(120, 50.0) != sample(120, 50.0, seed=1)
    first = [name for name, exporter in found if exporter == "TorchScript"]
    second = [name for name, exporter in found if exporter == "dynamo"]
    assert len(first) == len(set(first)) == 120 and set(second) < set(first)
    assert len(second) >= 20
    assert large.isdisjoint(first)
    usable = [home for home, some in files.items() if some - large]
    assert all(files[home] & set(first[: len(usable)]) for home in usable)


# What a row must tell.


class Branches(nn.Module):
    """Two branches, and the conversion that their author wrote."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.factor, self.converted = factor, False

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.a(x) if self.converted else self.a(x) + self.b(x)
        return result

    @torch.no_grad()
    def reparameterize(self) -> None:
        if self.factor == 0:
            raise AttributeError("no such layer")
        self.a.weight[:, :, 1:2, 1:2] += self.b.weight * self.factor
        assert self.a.bias is not None and self.b.bias is not None
        self.a.bias += self.b.bias
        self.converted = True


class Model(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.part = Branches(factor)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part(x)
        return result.relu()


class Planted:
    """A plan whose result is changed."""

    def __init__(self, plan: Any, change: Callable[[Any], Any]) -> None:
        self.report, self.plan, self.change = plan.report, plan, change

    def apply(self) -> Any:
        return self.change(self.plan.apply())


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    plan = repfuse.plan
    monkeypatch.setattr(repfuse, "plan", lambda model: Planted(plan(model), change))


def row_of(model: nn.Module) -> Row:
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    return measure(Row("model"), Subject(model, (x,), "home"))


def test_a_row_says_what_was_merged() -> None:
    row = row_of(Model())
    assert (row.status, row.detail) == ("equal", "")
    assert (row.convs, row.norms, row.linears, row.adds) == ("2 -> 1", "0 -> 0", "0 -> 0", "1 -> 0")
    assert (row.work, row.hand_written) == ("3 -> 1", "1")
    assert float(row.error) < 1e-14 and float(row.hand_written_error) < 1e-14


@torch.no_grad()
def scale(model: Any, factor: float) -> Any:
    for parameter in model.parameters():
        parameter *= factor
    return model


def wrap(model: Any) -> nn.Module:
    return nn.Sequential(model)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda model: scale(model, 1 + 1e-7), r"relative error 1e-07 is above 1e-09"),
        (lambda model: scale(model, float("nan")), "the candidate has NaN or Inf"),
        (lambda model: scale(model, 0.0), "relative error 1 is above"),
        (lambda model: model.double() and Model(), r"relative error"),
        (wrap, "the class is Sequential"),
    ],
)
def test_a_wrong_result_fails(
    change: Callable[[Any], Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, change)
    row = row_of(Model())
    assert row.status == "failed"
    assert re.search(fault, row.detail), row.detail


def test_a_changed_original_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()

    def change(fused: Any) -> Any:
        scale(model, 2.0)
        return fused

    plant(monkeypatch, change)
    row = row_of(model)
    assert row.status == "failed" and "the original's part.a.weight changed" in row.detail


def test_too_little_merged_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    plant(monkeypatch, lambda fused: copy.deepcopy(model))
    row = row_of(model)
    assert row.status == "failed"
    assert "a second fuse rewrites" in row.detail
    assert "its own conversion has 1 operators" in row.detail


def test_a_failed_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = repfuse.plan

    def planted(model: Any) -> Any:
        made = plan(model)
        made.report.errors.append("0.1 apart")
        return made

    monkeypatch.setattr(repfuse, "plan", planted)
    row = row_of(Model())
    assert (row.status, row.detail) == ("failed", "a rewrite failed its probe: 0.1 apart")


def test_a_wrong_conversion_by_hand_is_told() -> None:
    wrong, raising = row_of(Model(1.5)), row_of(Model(0.0))
    assert (wrong.status, wrong.hand_written) == ("equal", "1")
    assert float(wrong.hand_written_error) > 0.01
    assert (raising.status, raising.hand_written) == ("equal", "")
    assert raising.hand_written_error == "raises AttributeError: no such layer"


class Chaos(Model):
    """Moving the last bit of the input moves the output far."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part(x)
        return (result * 1e8).cos()


def test_where_any_rounding_grows_the_row_says_so() -> None:
    row = row_of(Chaos())
    assert row.status == "equal", row.detail
    assert "moving the input by one ulp moves the output by" in row.detail
    assert 1e-9 < float(row.error) < 1e-5


# ONNX.


def exported_model() -> tuple[ModelProto, dict[str, np.ndarray]]:
    net = Net()
    model = net.model(net.block(net.input("x", (2, 8, 6, 6))))
    return model, {"x": np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)}


def judged(**changes: Any) -> ExportRow:
    model, feed = exported_model()
    own = exported._run(model, feed)
    answer = changes.pop("answer", [values.astype(np.float64) for values in own])
    return judge(ExportRow("model", "TorchScript"), model, feed, answer, own)


def test_a_row_of_an_exported_model() -> None:
    row = judged()
    assert (row.status, row.detail) == ("equal", "")
    assert row.convs.endswith(" -> 1") and row.norms.endswith(" -> 0")
    assert float(row.own_error) == 0 < float(row.error) < 1e-6


def weaken(model: ModelProto) -> ModelProto:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.001), tensor.name))
    return model


def rename(model: ModelProto) -> ModelProto:
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["new"]))
    model.graph.output[0].name = "new"
    return model


def cut(model: ModelProto) -> ModelProto:
    del model.graph.node[0]
    return model


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (weaken, "relative error 0.00.*, that of the exported model is 0"),
        (rename, "the inputs or outputs changed"),
        (cut, "ValidationError"),
    ],
)
def test_a_wrong_exported_model_fails(
    change: Callable[[Any], Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, change)
    if change is cut:  # what is planned again would not be read
        real = repfuse.plan
        seen: list[Any] = []

        def once(model: Any) -> Any:
            seen.append(model)
            return real(model if len(seen) == 1 else seen[0])

        monkeypatch.setattr(repfuse, "plan", once)
    row = judged()
    assert row.status == "failed"
    assert re.search(fault, row.detail), row.detail


def test_the_answer_is_that_of_the_module() -> None:
    """A file that is as far off as the exported one is its match: the exporter is wrong."""
    model, feed = exported_model()
    shifted = [values + 1.0 for values in exported._run(model, feed)]
    row = judged(answer=shifted)
    assert row.status == "equal" and float(row.own_error) > 0.1


# The process.


def boom() -> None:
    raise ValueError("a\nfault")


def endless() -> None:
    while True:
        pass


def greedy() -> int:
    return len(bytearray(8 << 30))


def ends() -> None:
    os._exit(3)


def prints() -> str:
    os.write(1, b"a whole graph")
    return "done"


@pytest.mark.parametrize(
    ("work", "limits", "said"),
    [
        (boom, {}, r"ValueError: a fault \(test_sweep.py:\d+\)"),
        (endless, {"seconds": 1.0}, "took more than 1 s"),
        (greedy, {"memory": 4.0}, r"MemoryError: .*\(test_sweep.py:\d+\)"),
        (ends, {}, "the process ended with 3"),
    ],
)
def test_whatever_becomes_of_the_process_is_told(
    work: Callable[[], Any], limits: dict[str, float], said: str
) -> None:
    found = in_process(work, **LIMITS | limits)
    assert isinstance(found, str) and re.fullmatch(said, found), found


def test_what_is_printed_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_process(prints, **LIMITS) == "done"
    assert capfd.readouterr() == ("", "")


# Resuming.

EQUAL = Row("a", "home", "equal", work="3 -> 1", convs="2 -> 1", error="1.0e-15", seconds=0.5)


class Sweep:
    """The command on three models that are not really checked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.checked = folder, list[str]()
        self.found: dict[str, Any] = {
            "a": EQUAL,
            "b": "took more than 900 s",
            "c": Row("c", status="skipped", detail="too large", parameters=80.0),
        }
        monkeypatch.setattr(command, "names", lambda family: list(self.found))
        monkeypatch.setattr(command, "in_process", self.one)

    def one(self, work: Any, family: str, name: str, largest: float, **limits: float) -> Any:
        self.checked.append(name)
        return self.found[name]

    def run(self, *options: str) -> Result:
        self.checked.clear()
        arguments = ["--family", "timm", "--results", str(self.folder), *options]
        return CliRunner().invoke(command.main, arguments)

    @property
    def path(self) -> Path:
        return self.folder / "timm.csv"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    return Sweep(tmp_path, monkeypatch)


def test_a_sweep_goes_on_where_it_was(sweep: Sweep) -> None:
    assert sweep.run("--stop-after", "-1").exit_code == 0 and not sweep.checked
    assert sweep.run("--match", "[ab]").exit_code == 1 and sweep.checked == ["a", "b"]
    result = sweep.run("--largest", "50")
    assert result.exit_code == 1 and sweep.checked == ["c"]
    assert "failed: b: took more than 900 s" in result.output
    assert "3 of 3 checked, 1 failed" in result.output
    sweep.run("--largest", "50")
    assert sweep.checked == []
    sweep.found["b"] = replace(EQUAL, model="b")
    assert sweep.run("--failed", "--largest", "50").exit_code == 0 and sweep.checked == ["b"]
    sweep.run()
    assert sweep.checked == ["c"], "the limit is higher now"
    sweep.run("--again", "--match", "a", "--match", "c")
    assert sweep.checked == ["a", "c"]
    rows = read(sweep.path, Row)
    assert [row.model for row in rows] == ["a", "b", "c"]
    assert all(re.fullmatch(r"[0-9a-f]{10,}\+?|", row.commit) for row in rows)


def test_a_row_that_was_cut_off_is_made_again(sweep: Sweep) -> None:
    sweep.run()
    whole = sweep.path.read_text("utf-8")
    sweep.path.write_text(whole[:-9], "utf-8")
    sweep.run()
    assert sweep.checked == ["c"]
    assert sweep.path.read_text("utf-8") == whole


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [EQUAL, Row("b", detail='a "fault", told', parameters=1.25, refusals=3, memory=7)]
    for row in reversed(rows):
        append(tmp_path / "one" / "timm.csv", row)
    assert read(tmp_path / "one" / "timm.csv", Row) == rows[::-1]
    write(tmp_path / "two.csv", reversed(rows))
    assert read(tmp_path / "two.csv", Row) == rows
    assert read(tmp_path / "none.csv", Row) == []
    export = ExportRow("a", "dynamo", status="not exported", detail="an operator, unknown")
    append(tmp_path / "onnx.csv", export)
    assert read(tmp_path / "onnx.csv", ExportRow) == [export]


# The page.


def write_rows(folder: Path) -> None:
    growing = "moving the input by one ulp moves the output by 1.0e-09"
    rows = [
        EQUAL,
        replace(EQUAL, model="b", home="other", work="5 -> 5", error="2.0e-12", seconds=1.5),
        replace(EQUAL, model="c", hand_written="2", hand_written_error="3.0e-08"),
        replace(EQUAL, model="d", hand_written="1", hand_written_error="1.0e-15"),
        replace(EQUAL, model="e", hand_written_error="raises AttributeError: x"),
        replace(EQUAL, model="f", error="4.0e-09", detail=growing),
        Row("g_h", "home", detail="took more than 900 s", work="4 -> 4"),
        Row("i", status="skipped", detail="too large"),
    ]
    write(folder / "timm.csv", rows)
    exports = [
        ExportRow("a", "TorchScript", "home", "equal", "", 1.0, "9 -> 4", "2 -> 1", "1 -> 0",
                  "3 -> 1", "2.0e-07", "3.0e-07", seconds=0.2),
        ExportRow("a", "dynamo", status="not exported", detail="no such operator" + 30 * " at all"),
    ]  # fmt: skip
    write(folder / "timm-onnx.csv", exports)


def test_the_page_tells_what_the_rows_say(tmp_path: Path) -> None:
    write_rows(tmp_path)
    page = make_zoo.page(tmp_path)
    words = " ".join(page.split())
    for line in (
        "| timm | 8 | 6 | 5 | 1 | 1 | 20 -> 10 | 2e-12 | 0.5 | 2 |",
        "| timm, as ONNX | 2 | 1 | 1 | 0 | 1 | 3 -> 1 | 3e-07 | 0.2 | 0 |",
        "Of 3 models, 1 have fewer operators when fused by repfuse, 1 as many, and 0 more.",
        "timm's conversion is wrong or less exact than 1e-09 in 2:",
        "| c | home | 3 | 1 | 2 | 1.0e-15 | **3.0e-08** |",
        "| d | home | 3 | 1 | 1 | 1.0e-15 | 1.0e-15 |",
        "| e | home | 3 | 1 |  | 1.0e-15 | **raises AttributeError: x** |",
        "- g_h: took more than 900 s",
        "- f: moving the input by one ulp moves the output by 1.0e-09, "
        "the largest error is 4.0e-09",
        "| home | 5 | 5 | 15 -> 5 | 4e-09 | 0.5 |",
        "- a dynamo: no such operator",
        "| dynamo | 1 | 0 | 0 | 1 |",
        "| a | TorchScript | 9 -> 4 | 3 -> 1 | 3.0e-07 | 2.0e-07 | 0.2 |",
    ):
        assert line in (page if "|" in line else words), line
    assert [text for text in page.splitlines() if len(text) > 100 and text[0] != "|"] == []
    assert "torchvision\n" not in page.partition("## Again")[0].partition("\n")[2]


def test_the_picture_shows_every_model(tmp_path: Path) -> None:
    write_rows(tmp_path)
    for name in ("one.svg", "two.svg"):
        make_zoo.draw(tmp_path, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    space = "{http://www.w3.org/2000/svg}"
    shown = {
        group.attrib["id"]: len(list(group.iter(f"{space}use")))
        for group in ElementTree.parse(tmp_path / "one.svg").iter(f"{space}g")
        if group.attrib.get("id", "").startswith("zoo-")
    }
    assert shown == {"zoo-plain": 3, "zoo-own": 3}


def test_the_page_is_as_its_script_writes_it() -> None:
    stored = PAGE.read_text("utf-8") if PAGE.exists() else ""
    written = make_zoo.page() if FOLDER.exists() else ""
    assert stored == written, "run: python -m docs.make_zoo"
    assert PICTURE.exists() == FOLDER.exists()


def test_the_rows_of_the_page_are_whole() -> None:
    """Nothing failed, and no model has more operators than its own conversion leaves."""
    for path in sorted(FOLDER.glob("*.csv")):
        kind: Any = ExportRow if path.stem.endswith("-onnx") else Row
        header = path.read_text("utf-8").partition("\n")[0]
        assert header.split(",") == [field.name for field in fields(kind)]
        rows = read(path, kind)
        assert [row.key for row in rows] == sorted({row.key for row in rows})
        assert [row.key for row in rows if row.status == "failed"] == []
        for row in rows:
            if getattr(row, "hand_written", ""):
                assert int(row.work.split(" -> ")[1]) <= int(row.hand_written), row
