"""ONNX files read and written without holding their weights: as protobuf's wire format, of which large tensors are skipped.

Encoding: protobuf.dev/programming-guides/encoding. Field numbers are onnx.proto's.
"""

from __future__ import annotations

import mmap
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

WHOLE_BYTES = 16_000_000  # files under this are simply read
LARGE_BYTES = 1_000_000  # of a tensor whose values are left in the file
COPY_BYTES = 16_000_000
GRAPH, INITIALIZER, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION, EXTERNAL = 7, 5, 9, 13, 14, 1
LENGTH_DELIMITED = 2
# Message → fields that lead to tensors, and what messages those are.
WITHIN: dict[str, dict[int, str]] = {
    "model": {GRAPH: "graph"},
    "graph": {1: "node", INITIALIZER: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}


def load_structure(path: Path) -> Any:
    """The model, with large values left where they are: such a tensor is external, in the ONNX file itself.

    Raises protobuf's `DecodeError`, or `ValueError`, for what is no ONNX file.
    """
    import onnx

    if path.stat().st_size < WHOLE_BYTES:
        return onnx.load(str(path), load_external_data=False)
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return onnx.load_model_from_string(_without_values(data, 0, len(data), "model", path.name))


def _without_values(data: mmap.mmap, start: int, end: int, message: str, location: str) -> bytes:
    """A message again, its large tensors' values replaced by where they lie."""
    parts: list[bytes] = []
    for field, wire, head, begin, stop in _fields(data, start, end):
        large = wire == LENGTH_DELIMITED and stop - begin >= LARGE_BYTES
        if large and message == "tensor" and field == RAW_DATA:
            for key, value in (("location", location), ("offset", str(begin)), ("length", str(stop - begin))):
                parts.append(_delimited(EXTERNAL_DATA, _delimited(1, key.encode()) + _delimited(2, value.encode())))
            parts.append(_varint(DATA_LOCATION << 3) + _varint(EXTERNAL))
        elif large and field in WITHIN[message]:
            parts.append(_delimited(field, _without_values(data, begin, stop, WITHIN[message][field], location)))
        else:
            parts.append(data[head:stop])
    return b"".join(parts)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field, wire type, start of the field, start and end of its value) of a message."""
    place = start
    while place < end:
        head = place
        tag, place = _read_varint(data, place)
        field, wire = tag >> 3, tag & 7
        begin = place
        if wire == 0:
            _, place = _read_varint(data, place)
        elif wire == 1:
            place += 8
        elif wire == LENGTH_DELIMITED:
            length, begin = _read_varint(data, place)
            place = begin + length
        elif wire == 5:
            place += 4
        else:
            raise ValueError(f"wire type {wire}")
        if place > end:
            raise ValueError("a field reaches beyond its message")
        yield field, wire, head, begin, place


def _read_varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number has no end")
        byte = data[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if byte < 0x80:
            return value, place


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _delimited(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | LENGTH_DELIMITED) + _varint(len(value)) + value


def write_with_values(model: Any, values: Iterable[tuple[Any, Path, int, int]], out: IO[bytes]) -> None:
    """Write a model whose `values` (tensor, file, offset, length; the tensors are not in its graph) become initializers with
    their values inside, copied from their files."""
    graph = model.graph.SerializeToString(deterministic=True)
    entries = []
    for tensor, path, offset, length in values:
        held = type(tensor).FromString(tensor.SerializeToString())
        held.ClearField("external_data")
        held.ClearField("data_location")
        start = held.SerializeToString(deterministic=True) + _varint(RAW_DATA << 3 | LENGTH_DELIMITED) + _varint(length)
        entries.append((_varint(INITIALIZER << 3 | LENGTH_DELIMITED) + _varint(len(start) + length) + start, path, offset, length))
    rest = type(model).FromString(b"")
    for descriptor, _ in model.ListFields():
        if descriptor.number != GRAPH:
            _copy_field(model, rest, descriptor.name)
    total = len(graph) + sum(len(start) + length for start, _, _, length in entries)
    out.write(rest.SerializeToString(deterministic=True))
    out.write(_varint(GRAPH << 3 | LENGTH_DELIMITED) + _varint(total) + graph)
    for start, path, offset, length in entries:
        out.write(start)
        copy_part(path, offset, length, out)


def _copy_field(source: Any, target: Any, name: str) -> None:
    value = getattr(source, name)
    if hasattr(value, "MergeFrom"):
        getattr(target, name).MergeFrom(value)
    else:
        setattr(target, name, value)


def copy_part(path: Path, offset: int, length: int, out: IO[bytes]) -> None:
    """`length` bytes of a file from `offset` on, a piece at a time."""
    with path.open("rb") as source:
        source.seek(offset)
        for place in range(0, length, COPY_BYTES):
            out.write(source.read(min(COPY_BYTES, length - place)))
