"""Hostile cases of files: bytes that are no model, places of external data, paths of IN and OUT."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto

from tests.hostile.runner import OWN, Place
from tests.hostile.seeds import SEEDS, branches, external, placed

__all__ = ["CASES"]

Case = Callable[[Place], Sequence[str] | None]
CASES: dict[str, Case] = {}

WHOLE = branches().SerializeToString()


def case(function: Case) -> Case:
    CASES[function.__name__.replace("_", " ")] = function
    return function


# --------------------------------------------------------------------------------- bytes


def _content(name: str, content: bytes) -> None:
    def write(place: Place) -> None:
        place.source.write_bytes(content)

    CASES[name] = write


_content("empty", b"")
_content("text", b"no model at all\n")
_content("zeros", bytes(4096))
_content("a zip", b"PK\x03\x04" + bytes(60))
_content("a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.")
_content("a page", b"<!DOCTYPE html><html><body>404</body></html>")
_content("a pointer of git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
_content("only an IR version", b"\x08\x08")
_content("a long varint", b"\x08" + b"\xff" * 40)
_content("a length beyond the end", b"\x08\x08\x3a\xff\xff\xff\xff\x0f")
_content("twice the same model", WHOLE * 2)
_content("bytes after the model", WHOLE + b"\xff" * 9)
_content("an unknown field", WHOLE + b"\xfa\x3f\x03abc")
_content("groups in groups", b"\x08\x08" + b"\x0b" * 20_000)
for share in (1, 10, 40, 70, 95, 99):
    _content(f"cut at {share} percent", WHOLE[: len(WHOLE) * share // 100])
_content("cut by one byte", WHOLE[:-1])
for place_ in (5, 60, 300, 1200, 2000):
    flipped = bytearray(WHOLE)
    flipped[place_] ^= 0x10
    _content(f"a flipped bit at {place_}", bytes(flipped))


@case
def nested_messages(place: Place) -> None:
    """Five thousand bodies in each other, as bytes: protobuf itself has a limit."""
    inner = b""
    for _ in range(5000):
        attribute = b"\x32" + _length(inner) + inner + b"\xa0\x01\x05"  # g, type GRAPH
        node = b"\x2a" + _length(attribute) + attribute
        inner = b"\x0a" + _length(node) + node
    place.source.write_bytes(b"\x08\x08\x3a" + _length(inner) + inner)


def _length(content: bytes) -> bytes:
    number, found = len(content), bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


# -------------------------------------------------------------------------- external data


def _moved(location: str, offset: object = 0, length: object = None, at: int = 0) -> ModelProto:
    """The external model, one of whose weights is said to be elsewhere."""
    model = external().model
    placed(model.graph.initializer[at], location, offset, length)
    return model


def _placed(name: str, location: str, offset: object = 0, length: object = None) -> None:
    def write(place: Place) -> None:
        files = external()
        files.model = _moved(location.replace("{outside}", str(place.outside)), offset, length)
        files.write(place.inside)

    CASES[f"external: {name}"] = write


_placed("missing", "no.data")
_placed("above the folder", "../outside/secret.bin")
_placed("an absolute path", "{outside}/secret.bin")
_placed("above through a folder", "a/../../outside/secret.bin")
_placed("of a backslash", "..\\outside\\secret.bin")
_placed("the model itself", "in.onnx", 0, 64)
_placed("no name", "")
_placed("the folder", ".")
_placed("a name with a zero", "in.data\0.txt")
_placed("a long name", "a" * 5000)
_placed("a name of lines", "in\n.data")
_placed("a device", "/dev/zero")
_placed("of the process", "/proc/self/environ")
_placed("offset beyond the end", "in.data", 10**6)
_placed("offset beyond 64 bits", "in.data", 10**30)
_placed("length beyond the end", "in.data", 0, 10**9)
_placed("length beyond 64 bits", "in.data", 0, 10**30)
_placed("length too short", "in.data", 0, 3)
_placed("length too long", "in.data", 0, 700)
_placed("negative offset", "in.data", -8)
_placed("negative length", "in.data", 0, -1)
_placed("offset no number", "in.data", "zero")
_placed("offset of other digits", "in.data", "٣٢")
_placed("offset with spaces", "in.data", " 16 ")
_placed("offset with underscores", "in.data", "1_6")
_placed("length as a fraction", "in.data", 0, "64.0")
_placed("offset not aligned", "in.data", 3)
_placed("a url", "https://example.org/in.data")


@case
def external_overlapping(place: Place) -> None:
    files = external()
    for tensor in files.model.graph.initializer:
        placed(tensor, "in.data", 0, None)
    files.write(place.inside)


@case
def external_twice_the_same_key(place: Place) -> None:
    files = external()
    tensor = files.model.graph.initializer[0]
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    files.write(place.inside)


@case
def external_first_key_outside(place: Place) -> None:
    """The checked location must be the one that is read: of two entries, whichever counts."""
    files = external()
    tensor = files.model.graph.initializer[0]
    first = ModelProto().graph.initializer.add()
    first.CopyFrom(tensor)
    tensor.ClearField("external_data")
    tensor.external_data.add(key="location", value="../outside/secret.bin")
    tensor.external_data.extend(first.external_data)
    files.write(place.inside)


@case
def external_by_a_link_to_outside(place: Place) -> None:
    files = external()
    del files.beside["in.data"]
    (place.inside / "in.data").symlink_to(place.outside / "secret.bin")
    files.write(place.inside)


@case
def external_by_a_linked_folder(place: Place) -> None:
    (place.inside / "sub").symlink_to(place.outside)
    files = external()
    files.model = _moved("sub/secret.bin")
    files.write(place.inside)


@case
def external_by_a_link_to_itself(place: Place) -> None:
    (place.inside / "loop").symlink_to("loop")
    files = external()
    files.model = _moved("loop")
    files.write(place.inside)


@case
def external_by_a_hard_link_to_the_model(place: Place) -> None:
    files = external()
    files.model = _moved("same.data", 0, 64)
    os.link(files.write(place.inside), place.inside / "same.data")


@case
def external_is_a_pipe(place: Place) -> None:
    files = external()
    del files.beside["in.data"]
    os.mkfifo(place.inside / "in.data")
    files.write(place.inside)


@case
def external_is_a_hole_of_a_terabyte(place: Place) -> None:
    """Tiny on disk, and so is the model; the weight that is declared is not."""
    files = external()
    tensor = files.model.graph.initializer[0]
    tensor.dims[:] = [2**19, 2**19, 1, 1]
    placed(tensor, "in.data", 0, 2**40)
    path = files.write(place.inside)
    os.truncate(path.with_name("in.data"), 2**40)


@case
def external_in_a_constant(place: Place) -> None:
    model = SEEDS["function"]().model
    tensor = model.functions[0].node[0].attribute[0].t
    placed(tensor, "../outside/secret.bin", 0, None)
    place.source.write_bytes(model.SerializeToString())


@case
def external_in_a_body(place: Place) -> None:
    model = SEEDS["loop"]().model
    (body,) = [a.g for node in model.graph.node for a in node.attribute if a.name == "body"]
    placed(body.initializer[0], "../outside/secret.bin", 0, None)
    place.source.write_bytes(model.SerializeToString())


@case
def external_in_a_sparse_tensor(place: Place) -> None:
    model = branches()
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1]))
    sparse.indices.CopyFrom(TensorProto(data_type=TensorProto.INT64, dims=[1], int64_data=[0]))
    placed(sparse.values, "../outside/secret.bin", 0, 4)
    place.source.write_bytes(model.SerializeToString())


@case
def external_in_training_data(place: Place) -> None:
    model = branches()
    tensor = model.training_info.add().initialization.initializer.add(name="w", dims=[1])
    tensor.data_type = TensorProto.FLOAT
    placed(tensor, "../outside/secret.bin", 0, 4)
    place.source.write_bytes(model.SerializeToString())


@case
def external_and_raw(place: Place) -> None:
    files = external()
    files.model.graph.initializer[0].raw_data = bytes(64)
    files.write(place.inside)


# ------------------------------------------------------------------------- paths of IN and OUT


@case
def in_does_not_exist(place: Place) -> None:
    del place


@case
def in_is_a_folder(place: Place) -> None:
    place.source.mkdir()


@case
def in_is_a_link_to_nothing(place: Place) -> None:
    place.source.symlink_to("nothing.onnx")


@case
def in_is_a_link_to_itself(place: Place) -> None:
    place.source.symlink_to("in.onnx")


@case
def in_is_a_pipe_without_a_writer(place: Place) -> None:
    os.mkfifo(place.source)


def _device(name: str) -> None:
    def use(place: Place) -> Sequence[str]:
        return [name, str(place.result)]

    CASES[f"in is {name}"] = use


for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/stdin"):
    _device(device)


@case
def in_is_a_hole_of_three_gigabytes(place: Place) -> None:
    place.source.write_bytes(WHOLE)
    os.truncate(place.source, 3 * 2**30)


@case
def in_has_a_name_of_control_characters(place: Place) -> Sequence[str]:
    path = place.inside / "in\x1b[31m\x07.onnx"
    path.write_bytes(WHOLE[:100])
    return [str(path), str(place.result)]


def _out(name: str, find: Callable[[Place], str]) -> None:
    def use(place: Place) -> Sequence[str]:
        external().write(place.inside)
        return [str(place.source), find(place)]

    CASES[f"out is {name}"] = use


def _made(make: Callable[[Path], object]) -> Callable[[Place], str]:
    def find(place: Place) -> str:
        make(place.out / "there")
        return str(place.out / "there")

    return find


_out("IN", lambda place: str(place.source))
_out("IN in other words", lambda place: f"{place.inside}/../in/./in.onnx")
_out("the data of IN", lambda place: str(place.inside / "in.data"))
_out("such that its data are those of IN", lambda place: str(place.inside / "in"))
_out("a folder", lambda place: str(place.out))
_out("a folder with a slash", lambda place: f"{place.out}/")
_out("in no folder", lambda place: str(place.out / "no" / "out.onnx"))
_out("below a file", lambda place: str(place.source / "out.onnx"))
_out("a pipe", _made(os.mkfifo))
_out("/dev/null", lambda place: "/dev/null")
_out("/dev/full", lambda place: "/dev/full")
_out("/dev/stdout", lambda place: "/dev/stdout")
_out("of no name", lambda place: "")
_out("a long name", lambda place: str(place.out / ("a" * 300)))
_out("a link to IN", lambda place: _link(place, place.source))
_out("a link to the data of IN", lambda place: _link(place, place.inside / "in.data"))
_out("a link to outside", lambda place: _link(place, place.outside / "secret.bin"))
_out("a link to nothing", lambda place: _link(place, place.outside / "new.onnx"))
_out("a hard link to IN", lambda place: _hard_link(place))


def _link(place: Place, target: Path) -> str:
    (place.out / "there").symlink_to(target)
    return str(place.out / "there")


def _hard_link(place: Place) -> str:
    os.link(place.source, place.out / "there")
    return str(place.out / "there")


@case
def out_is_there_already_and_in_is_bad(place: Place) -> None:
    place.source.write_bytes(WHOLE[:-40])
    place.result.write_bytes(OWN)
