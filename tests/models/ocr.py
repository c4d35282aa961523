"""Read text with the PP-OCRv4 networks of rapidocr-onnxruntime, by nothing but the networks.

Source: the networks are PaddleOCR's PP-OCRv4, Apache-2.0, in ONNX form.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

__all__ = ["NETWORKS", "network", "page", "read_text"]

NETWORKS = {
    "detector": "ch_PP-OCRv4_det_infer.onnx",
    "recogniser": "ch_PP-OCRv4_rec_infer.onnx",
    "classifier": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}
HEIGHT = 48  # what the recogniser reads
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(role: str) -> Path:
    """The file of one network. The package itself is not imported: it asks for a display."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "models" / NETWORKS[role]


def page(lines: list[str]) -> Image.Image:
    """Black text on white, a line below the other."""
    picture = Image.new("RGB", (640, 64 + 96 * len(lines)), "white")
    font = ImageFont.load_default(size=44)
    for place, line in enumerate(lines):
        ImageDraw.Draw(picture).text((40, 40 + 96 * place), line, fill="black", font=font)
    return picture


def read_text(
    detector: ModelProto, recogniser: ModelProto, picture: Image.Image
) -> list[tuple[str, float]]:
    """The lines of a page with the mean probability of their characters, top to bottom."""
    pixels = np.asarray(picture, np.float32) / 255.0
    found = _run(detector, (pixels - MEAN) / SPREAD)[0, 0]
    regions, _ = ndimage.label(ndimage.binary_dilation(found > 0.3, iterations=6))
    boxes = sorted(ndimage.find_objects(regions), key=lambda box: box[0].start)
    return [_read_line(recogniser, picture, box) for box in boxes]


def _read_line(
    recogniser: ModelProto, picture: Image.Image, box: tuple[slice, slice]
) -> tuple[str, float]:
    rows, columns = box
    line = picture.crop((columns.start, rows.start, columns.stop, rows.stop))
    line = line.resize((round(line.width * HEIGHT / line.height), HEIGHT))
    scores = _run(recogniser, np.asarray(line, np.float32) / 127.5 - 1.0)[0]
    (characters,) = [p.value.splitlines() for p in recogniser.metadata_props]
    alphabet = ["", *characters, " "]
    best = scores.argmax(axis=1)
    kept = [i for i in range(len(best)) if best[i] and (not i or best[i] != best[i - 1])]
    text = "".join(alphabet[best[i]] for i in kept)
    return text, float(np.mean([scores[i, best[i]] for i in kept] or [0.0]))


def _run(model: ModelProto, pixels: Any) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    batch = np.ascontiguousarray(np.transpose(pixels, (2, 0, 1))[None], np.float32)
    (result,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(result)


def constants_of(model: ModelProto) -> set[str]:
    made = {name for n in model.graph.node if n.op_type == "Constant" for name in n.output}
    return made | {tensor.name for tensor in model.graph.initializer}


def load(role: str) -> ModelProto:
    return onnx.load(network(role))
