"""Tell an ONNX file that ends early from a file of another kind, by its first bytes."""

from __future__ import annotations

__all__ = ["looks_like_a_model"]

# The wire types of the fields of ModelProto.
FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def looks_like_a_model(data: bytes) -> bool:
    """Whether a file begins with the fields of a ModelProto, the IR version first."""
    view, position, seen = memoryview(data), 0, 0
    while position < len(view):
        tag, position = _varint(view, position)
        if FIELDS.get(tag >> 3) != tag & 7:
            return seen >= 2
        value, position = _varint(view, position)
        if tag >> 3 == 1 and not 0 < value < 1000:
            return False
        position += value if tag & 7 == 2 else 0
        seen += 1
    return seen >= 1


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            break
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, position
