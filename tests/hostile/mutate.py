"""Random damage to the seeds: to their bytes, and to their fields."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from onnx import ModelProto

from tests.hostile.runner import Place
from tests.hostile.seeds import SEEDS, Files

__all__ = ["mutate"]

BYTES = 0.25  # the share of files of which bytes are changed
INTS = (0, 1, -1, 2, 3, 7, 8, 255, -2, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**62), 2**63 - 1)
# Bits and sign of protobuf's integers, where they are not int64.
WIDTHS = {FieldDescriptor.TYPE_INT32: (32, True), FieldDescriptor.TYPE_UINT64: (64, False)}
FLOATS = (0.0, -1.0, 1.0, float("nan"), float("inf"), 1e38, 1e-45, 0.5)
TEXTS = ("", "x", "y", "a" * 300, "\0", "../x", "\x1b[31m", "ai.onnx.ml", "SAME_UPPER", "名")
# What a file of a few bytes makes large, or repeats: these are drawn more often than others.
OPERATORS = ("ConstantOfShape", "Expand", "Tile", "Pad", "Loop", "Resize", "Range", "Reshape")
FLAGS: tuple[tuple[str, ...], ...] = (
    *[()] * 12,
    ("--save-external",),
    ("--dynamic",),
    ("--no-check",),
    ("--target", "min-ops"),
)


def mutate(seed: int, place: Place) -> tuple[str, list[str]]:
    """Write a damaged file; returns the command to give it to, and its arguments."""
    dice = random.Random(seed)
    name = dice.choice(list(SEEDS))
    files = _seed(name)
    model = ModelProto()
    model.CopyFrom(files.model)
    content = model.SerializeToString()
    if dice.random() < BYTES:
        content = _bytes(dice, content, name)
    else:
        for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 5))):
            _fields(dice, model)
        content = model.SerializeToString()
    beside = dict(files.beside)
    for other in beside:
        if dice.random() < 0.3:
            beside[other] = _damaged(dice, beside[other], b"")
    Files(files.model, beside).write(place.inside)
    place.source.write_bytes(content)
    return _use(dice, place, files)


def _use(dice: random.Random, place: Place, files: Files) -> tuple[str, list[str]]:
    source = str(place.source)
    draw = dice.random()
    if draw < 0.7:
        return "repfuse-onnx", [source, str(place.result), *dice.choice(FLAGS)]
    if draw < 0.75:
        return "repfuse-onnx", [source, "--plan"]
    if draw < 0.85:
        return "repfuse-check", [source, source]
    whole = str(files.write(place.inside, "whole.onnx"))
    return "repfuse-check", dice.choice(([whole, source], [source, whole]))


@cache
def _seed(name: str) -> Files:
    return SEEDS[name]()


# --------------------------------------------------------------------------------- bytes


def _bytes(dice: random.Random, content: bytes, name: str) -> bytes:
    other = _seed(dice.choice(list(SEEDS))).model.SerializeToString()
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        content = _damaged(dice, content, other)
    return content


def _damaged(dice: random.Random, content: bytes, other: bytes) -> bytes:
    start = dice.randrange(len(content) + 1)
    end = min(len(content), start + dice.choice((1, 1, 2, 4, 8, 64, 512)))
    kind = dice.randrange(8)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:end] + content[start:]
    if kind == 3:
        return content[:start] + dice.randbytes(end - start) + content[end:]
    if kind == 4:
        return content[:start] + other[start:]
    if kind == 5:
        return content[:start] + bytes([dice.choice((0, 127, 128, 255))]) + content[start + 1 :]
    if start == len(content):
        return content
    return content[:start] + bytes([content[start] ^ 1 << dice.randrange(8)]) + content[start + 1 :]


# -------------------------------------------------------------------------------- fields


def _fields(dice: random.Random, model: ModelProto) -> None:
    """Change one field of one message."""
    messages = list(_messages(model))
    if dice.random() < 0.5:  # most messages are dimensions and weights; look at nodes as well
        messages = [m for m in messages if isinstance(m, onnx.NodeProto | onnx.AttributeProto)]
    if not messages:
        return
    message: Any = dice.choice(messages)
    set_fields = [field for field, _ in message.ListFields()]
    everything = list(message.DESCRIPTOR.fields)
    field = dice.choice(set_fields if set_fields and dice.random() < 0.8 else everything)
    if field.is_repeated:
        _repeated(dice, model, message, field)
    elif field.message_type is not None:
        donors = [m for m in _messages(model) if m.DESCRIPTOR.name == field.message_type.name]
        if donors and dice.random() < 0.6:
            donor = type(donors[0])()
            donor.CopyFrom(dice.choice(donors))
            getattr(message, field.name).CopyFrom(donor)
        else:
            message.ClearField(field.name)
    elif dice.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(dice, model, field, getattr(message, field.name)))


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from _messages(one)


def _repeated(dice: random.Random, model: ModelProto, message: Any, field: Any) -> None:
    values = getattr(message, field.name)
    place = dice.randrange(len(values)) if values else 0
    kind = dice.randrange(5)
    if kind == 0 and values:
        del values[place]
    elif kind == 1 and len(values) > 1:
        copies = list(values)
        dice.shuffle(copies)
        copies = [_copy(one) for one in copies]
        del values[:]
        values.extend(copies)
    elif kind == 2 and values:
        values.append(_copy(values[place]))
    elif field.message_type is not None:
        donors = [m for m in _messages(model) if m.DESCRIPTOR.name == field.message_type.name]
        if donors:
            donor = _copy(dice.choice(donors))
            if values and dice.random() < 0.5:
                values[place].CopyFrom(donor)
            else:
                values.append(donor)
    else:
        old = values[place] if values else None
        new = _scalar(dice, model, field, old)
        if values and dice.random() < 0.8:
            values[place] = new
        else:
            values.append(new)


def _copy(value: Any) -> Any:
    if not hasattr(value, "CopyFrom"):
        return value
    copied = type(value)()
    copied.CopyFrom(value)
    return copied


def _scalar(dice: random.Random, model: ModelProto, field: Any, old: Any) -> Any:
    kinds = type(field)
    if field.cpp_type == kinds.CPPTYPE_STRING and field.type == kinds.TYPE_STRING:
        if field.name == "op_type":
            return dice.choice((*OPERATORS, *_operators()))
        names = [name for graph in _graphs(model) for node in graph.node for name in node.output]
        return dice.choice(TEXTS) if dice.random() < 0.4 or not names else dice.choice(names)
    if field.type == kinds.TYPE_BYTES:
        return _damaged(dice, old or b"abcd", b"")
    if field.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return dice.choice(FLOATS)
    if field.cpp_type == kinds.CPPTYPE_ENUM:
        return dice.choice([value.number for value in field.enum_type.values])
    if field.name in ("elem_type", "data_type"):
        return dice.randrange(-1, 27)
    value = dice.choice(INTS)
    if isinstance(old, int) and dice.random() < 0.4:
        value = old + dice.choice((-1, 1, 2))
    bits, signed = WIDTHS.get(field.type, (64, True))
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _graphs(model: ModelProto) -> Iterator[Any]:
    for message in _messages(model):
        if isinstance(message, onnx.GraphProto | onnx.FunctionProto):
            yield message


@cache
def _operators() -> tuple[str, ...]:
    found = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    return tuple(sorted(found))
