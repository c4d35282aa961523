"""What repfuse-onnx does, step by step; `repfuse.cli.onnx` is its command line."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

import repfuse
from repfuse.cli.running import check_writable, same_file, write_text
from repfuse.cli.staging import Staging, staging
from repfuse.comparison import Comparison
from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.files import external_range, read_model, tensors_of
from repfuse.frontends.onnx.plan import Plan, plan_model
from repfuse.frontends.onnx.summary import Summary, summarise
from repfuse.frontends.onnx.write import LIMIT, has_weights_apart, size_of, write_model
from repfuse.report import Report

__all__ = ["Job", "Outcome", "do"]

Progress = Callable[[int, int, str], None]
STEPS = 100


@dataclass(frozen=True)
class Job:
    """The command line, read. final is OUT, None where only a plan is wanted."""

    source: Path
    final: Path | None
    check: bool = True
    simplify: bool = False
    target: str = "cpu"
    dynamic: bool = False
    external: bool = False
    seed: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, Any] | None = None
    report: Path | None = None
    inputs_file: Path | None = None


@dataclass
class Outcome:
    """What happened, for the screen and for the report file."""

    job: Job
    report: Report
    macs: tuple[float, float]
    before: Summary
    after: Summary | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    comparison: Comparison | None = None
    written: list[Path] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return self.comparison is None or self.comparison.passed

    def to_dict(self) -> dict[str, Any]:
        from importlib.metadata import version

        sides: dict[str, Any] = {}
        rows = (("before", self.before, self.bytes_before), ("after", self.after, self.bytes_after))
        for place, (name, summary, size) in enumerate(rows):
            if summary is not None:
                numbers = {"macs": self.macs[place], "bytes": size}
                sides[name] = {**summary.to_dict(), **numbers}
        checked = None if self.comparison is None else self.comparison.to_dict()
        return {
            "versions": {
                "repfuse": repfuse.__version__,
                **{name: version(name) for name in ("onnx", "onnxruntime", "numpy")},
            },
            "input": str(self.job.source),
            "output": [str(path) for path in self.written],
            "target": self.job.target,
            "dynamic": self.job.dynamic,
            "seed": self.job.seed,
            **sides,
            "plan": self.report.to_dict(),
            "check": checked,
        }


def do(job: Job, progress: Progress) -> Outcome:
    """Do the job. A result that fails its check is not written; the outcome says so."""
    _check_paths(job)
    outcome = _planned(job, progress) if job.final is None else _fused(job, job.final, progress)
    if job.report is not None:
        write_text(job.report, json.dumps(outcome.to_dict(), indent=2) + "\n")
    return outcome


@dataclass(frozen=True)
class _Given:
    """What IN was: numbers, bytes with all external data, and the files that hold it."""

    summary: Summary
    size: int
    files: frozenset[Path]

    @classmethod
    def of(cls, path: Path, model: onnx.ModelProto) -> _Given:
        ranges = [
            external_range(tensor, path.parent)
            for tensor in tensors_of(model)
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        ]
        size = path.stat().st_size + sum(length for _, _, length in ranges)
        return cls(summarise(model), size, frozenset([path, *(file for file, _, _ in ranges)]))

    def spare(self, *written: Path | None) -> None:
        """Refuse to write over weights that are read."""
        for path in written:
            if path is not None and any(same_file(path, file) for file in self.files):
                raise RepfuseError(f"{path} is IN or holds weights of it: choose another name")


def _planned(job: Job, progress: Progress) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        made, given = _plan(job, Path(folder), progress)[:2]
        given.spare(job.report)
        return Outcome(job, made.report, made.macs, given.summary, bytes_before=given.size)


def _plan(job: Job, folder: Path, progress: Progress) -> tuple[Plan, _Given, Path]:
    """The plan, what was given, and the file that is fused: IN or a simplified form of it."""
    progress(0, STEPS, "reading")
    path, model = job.source, read_model(job.source)
    given = _Given.of(path, model)
    if job.simplify:
        del model
        path = _simplified(job.source, folder, progress)
        model = read_model(path)
    progress(5, STEPS, "planning")
    made = plan_model(
        model,
        path.parent,
        job.source.name,
        job.target,
        _sizes(job),
        lambda count: progress(5, STEPS, f"planning, {count} operators timed"),
        job.dynamic,
    )
    return made, given, path


def _sizes(job: Job) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs, for the costs; those of nothing only count when they are run."""
    arrays = {name: array.shape for name, array in (job.inputs or {}).items()}
    given = {**job.shapes, **arrays}
    return {name: shape for name, shape in given.items() if min(shape, default=1) > 0}


def _fused(job: Job, final: Path, progress: Progress) -> Outcome:
    with staging(final.parent) as stage:
        outcome, files = _write(job, final, stage, progress)
        gc.collect()  # the model is in the file now
        progress(55, STEPS, "checking")
        _check_structure(job.source, stage.path(final))
        if job.check:
            from repfuse.frontends.onnx.verify import measure  # imports ONNX Runtime

            outcome.comparison = measure(
                job.source,
                stage.path(final),
                job.inputs,
                shapes=job.shapes,
                seed=job.seed,
                progress=lambda n, all_, _: progress(
                    55 + 45 * n // max(all_, 1), STEPS, "checking"
                ),
            ).comparison
        if outcome.equal:
            try:
                stage.publish(*files)
            except OSError as error:
                reason = error.strerror or str(error)
                raise RepfuseError(f"{final} cannot be written: {reason}") from error
            outcome.written = files[::-1]
    return outcome


def _write(job: Job, final: Path, stage: Staging, progress: Progress) -> tuple[Outcome, list[Path]]:
    """Plan, compute and write to the stage; returns the files in the order to publish them."""
    made, given, path = _plan(job, stage.folder, progress)
    given.spare(final, job.report)
    outcome = Outcome(job, made.report, made.macs, given.summary, bytes_before=given.size)
    external = job.external or has_weights_apart(made.model)
    patched = made.patch(
        inplace=True,
        progress=lambda n, all_: progress(10 + 40 * n // max(all_, 1), STEPS, "fusing"),
    )
    outcome.after = summarise(patched)
    external = external or size_of(patched) > LIMIT
    data = data_of(final) if external else None
    given.spare(data)
    progress(50, STEPS, "writing")
    try:
        staged = None if data is None else stage.path(data)
        write_model(patched, stage.path(final), path.parent, staged)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RepfuseError(f"{final.parent} cannot be written: {reason}") from error
    files = [final] if data is None else [data, final]
    outcome.bytes_after = sum(stage.path(file).stat().st_size for file in files)
    return outcome, files


def _simplified(source: Path, folder: Path, progress: Progress) -> Path:
    """What onnxsim makes of the model. It runs by itself, as it may import much."""
    progress(0, STEPS, "simplifying")
    path = folder / "simplified" / source.name
    path.parent.mkdir()
    command = [sys.executable, "-m", "onnxsim", str(source.resolve()), str(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"it ended with {done.returncode}"
        raise RepfuseError(f"{source}: onnxsim failed: {reason}; leave out --simplify")
    return path


def _check_structure(source: Path, written: Path) -> None:
    """The strictest check that the source itself passes: with inferred shapes, or without, or only
    what every source has to pass."""
    checks: tuple[Callable[[str], object], ...] = (
        lambda path: onnx.checker.check_model(path, full_check=True),
        onnx.checker.check_model,
        read_model,
    )
    for check in checks:
        fault = _fault(check, written)
        if not fault:
            return
        if not _fault(check, source):
            raise RepfuseError(
                f"internal error: the result for {source} is not valid and was not written: {fault}"
            )


def _fault(check: Callable[[str], object], path: Path) -> str:
    try:
        check(str(path))
    except Exception as error:
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""


def _check_paths(job: Job) -> None:
    """Refuse outputs that cannot be written, or that would replace what is read."""
    read = [path for path in (job.source, job.inputs_file) if path is not None]
    if job.final is not None:
        if same_file(job.final, job.source):
            raise RepfuseError(f"IN and OUT are the same file {job.source}: name another OUT")
        check_writable(job.final, keep=read)
    if job.report is not None:
        if job.final is not None and any(
            same_file(job.report, path) for path in (job.final, data_of(job.final))
        ):
            raise RepfuseError(
                f"the report {job.report} is the same file as OUT or its weights: name another"
            )
        check_writable(job.report, keep=read)


def data_of(final: Path) -> Path:
    """Where the weights go that lie beside OUT."""
    return final.with_name(f"{final.name}.data")
