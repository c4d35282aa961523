"""The result of a check for machines: JSON, and the JUnit XML that CI systems show."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from repfuse import __version__
from repfuse.comparison import OutputError
from repfuse.frontends.onnx.verify import Measurement

__all__ = ["json_report", "junit_report"]

# Characters that XML 1.0 cannot hold, not even escaped.
FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def json_report(found: Measurement, facts: Mapping[str, Any]) -> str:
    """`Comparison.to_dict()` with the files, the seed, the shapes of the draws and versions."""
    whole = {
        **facts,
        **found.comparison.to_dict(),
        "draws": [{name: list(shape) for name, shape in draw.items()} for draw in found.draws],
        "versions": _versions(found),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def junit_report(found: Measurement, facts: Mapping[str, Any]) -> str:
    """One suite with a case for each output of each draw, or for each gap between interfaces."""
    outputs = found.comparison.outputs
    failed = [output for output in outputs if not output.passed]
    vacuous = not found.comparison.passed and not failed
    counts = {"tests": len(outputs) + vacuous, "failures": len(failed) + vacuous}
    numbers = {key: str(value) for key, value in {**counts, "errors": 0, "skipped": 0}.items()}
    root = ElementTree.Element("testsuites", {"name": "repfuse-check", **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "repfuse-check", **numbers})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {**facts, **_versions(found)}.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    group = Path(str(facts["candidate"])).name
    for output in outputs:
        case = _case(suite, group, output.name)
        if not output.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": _text(_why(output))})
            failure.set("type", "NotEquivalent")
            failure.text = _text(_details(output))
        elif output.remark:
            ElementTree.SubElement(case, "system-out").text = _text(output.remark)
    if vacuous:
        case = _case(suite, group, "anything compared")
        message = "no output has a finite value"
        ElementTree.SubElement(case, "failure", {"message": message, "type": "NotEquivalent"})
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    about = {"classname": _text(group), "name": _text(name), "time": "0"}
    return ElementTree.SubElement(suite, "testcase", about)


def _why(output: OutputError) -> str:
    return output.note or f"{output.max_abs:.2e} is beyond the tolerance of {output.tolerance:.2e}"


def _details(output: OutputError) -> str:
    names = ("output", "shape", "dtype", "max abs", "max rel", "SNR dB", "argmax", "original")
    cells = zip((*names, "tolerance", "verdict"), output.row, strict=True)
    return "\n".join(f"{name}: {cell}" for name, cell in cells if cell)


def _versions(found: Measurement) -> dict[str, str]:
    return {"repfuse": __version__, "engine": found.engine, "python": platform.python_version()}


def _text(value: object) -> str:
    return FORBIDDEN.sub("?", str(value))
