"""What an ONNX file holds, read from its bytes before any library loads it: damage and evil are refused in a sentence.

The walk follows protobuf's wire format (protobuf.dev/programming-guides/encoding) through the messages of onnx.proto and
copies nothing, so that 100 MB cost 20 ms, and it needs no package that the model server lacks. Refused are: what is no
protobuf or ends in the middle, weights outside the file (whatever path they name), operators of libraries that would have
to be loaded, tensors that declare more numbers than they hold, and weights that are NaN.

Does not cover: whether the graph is valid (ONNX Runtime says that), what it costs to run (a memory limit of the server stops
that), and whether the file is the one that its card names (`files.read_verified`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from visionloop.errors import ArtifactError

# ONNX's own operators and those that every ONNX Runtime carries; any other needs a library of somebody's.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
MAX_ONNX_BYTES = (1 << 31) - 1  # protobuf's own limit on one message; so no model is in two files
_MAX_DEPTH = 32  # graphs within graphs; protobuf itself stops at 100
_MAX_DIMS = 64  # numpy's own limit
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
# Bits of a number by TensorProto.DataType; of the others (strings, types to come) nothing is known.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
         17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}  # fmt: skip
_FLOATS = {1: "<f4", 10: "<f2", 11: "<f8"}
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_FUNCTION_NODE, _FUNCTION_DOMAIN = 7, 10
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_DOUBLES = 1, 2, 4, 8, 9, 10
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

_Value = int | tuple[int, int]  # a number, or where bytes begin and end


def check_onnx(data: bytes) -> None:
    """Look through the bytes of an ONNX file.

    >>> check_onnx(Path("model.onnx").read_bytes())

    Raises:
        ArtifactError: the file is empty or damaged, or holds what no classifier of this project has.
    """
    if not data:
        raise ArtifactError("The ONNX model has no bytes; rebuild it with `dvc repro`.")
    try:
        _Walk(data).model()
    except _WireError as error:
        raise ArtifactError(f"The ONNX model cannot be loaded ({error}); rebuild it with `dvc repro`.") from None


class _WireError(Exception):
    """The bytes are no protobuf."""


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._domains = set(DOMAINS)

    def model(self) -> None:
        fields = list(self._fields(0, len(self._data)))
        graphs = [value for number, value in fields if number == _MODEL_GRAPH]
        if not graphs:
            raise _WireError("it has no graph")
        functions = [value for number, value in fields if number == _MODEL_FUNCTION]
        for span in functions:  # a model may bring operators that are made of others
            self._domains |= {self._text(value) for number, value in self._within(span) if number == _FUNCTION_DOMAIN}
        for span in functions:
            for number, value in self._within(span):
                if number == _FUNCTION_NODE:
                    self._node(value, 1)
        for span in graphs:
            self._graph(span, 1)

    def _graph(self, span: _Value, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ArtifactError(
                f"The ONNX model has graphs within graphs, over {_MAX_DEPTH} deep, as no exporter writes; export it again."
            )
        for number, value in self._within(span):
            if number == _GRAPH_NODE:
                self._node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                self._sparse(value)

    def _node(self, span: _Value, depth: int) -> None:
        operator, domain, attributes = "", "", []
        for number, value in self._within(span):
            if number == _NODE_OPERATOR:
                operator = self._text(value)
            elif number == _NODE_DOMAIN:
                domain = self._text(value)
            elif number == _NODE_ATTRIBUTE:
                attributes.append(value)
        if domain not in self._domains:
            raise ArtifactError(
                f"The ONNX model has the operator {operator[:60]!r} of {domain[:60]!r}, which is in a library of its own; "
                "only ONNX's and ONNX Runtime's own operators are run. Export it without."
            )
        for attribute in attributes:
            for number, value in self._within(attribute):
                if number in _ATTRIBUTE_TENSORS:
                    self._tensor(value)
                elif number in _ATTRIBUTE_GRAPHS:
                    self._graph(value, depth + 1)
                elif number in _ATTRIBUTE_SPARSE:
                    self._sparse(value)

    def _sparse(self, span: _Value) -> None:
        for number, value in self._within(span):
            if number in _SPARSE_TENSORS:
                self._tensor(value)

    def _tensor(self, span: _Value) -> None:
        """Refuse a tensor that lies elsewhere, declares more than it holds, or is NaN."""
        dims: list[int] = []
        kind, name, is_external = 0, "", False
        raw: tuple[int, int] | None = None
        floats: list[tuple[tuple[int, int], str]] = []
        for number, value in self._within(span):
            if number == _TENSOR_DIMS:
                dims += [value] if isinstance(value, int) else self._varints(value)
            elif number == _TENSOR_TYPE and isinstance(value, int):
                kind = value
            elif number == _TENSOR_NAME:
                name = self._text(value)
            elif number == _TENSOR_RAW and not isinstance(value, int):
                raw = value
            elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
                is_external = True
            elif number in (_TENSOR_FLOATS, _TENSOR_DOUBLES) and not isinstance(value, int):
                floats.append((value, "<f4" if number == _TENSOR_FLOATS else "<f8"))
        what = f"the weights {name[:60]!r}"
        if is_external:
            raise ArtifactError(
                f"The ONNX model keeps {what} in another file, which its hash does not cover; rebuild it with `dvc repro`, "
                "or save it as one file."
            )
        count = math.prod(dims[:_MAX_DIMS])
        begin, end = span if not isinstance(span, int) else (0, 0)
        # Numbers outside of `raw_data` are varints or wider; the narrowest, of 2 bits, go four to a byte.
        room = (raw[1] - raw[0]) * 8 // _BITS[kind] if raw and kind in _BITS else (end - begin) * 4
        if len(dims) > _MAX_DIMS or any(size >> 63 for size in dims) or count > room:
            raise ArtifactError(
                f"The ONNX model declares {' x '.join(map(str, dims[:4]))} numbers for {what} and holds {room:,}; it is "
                "damaged, or made to exhaust the memory. Rebuild it with `dvc repro`."
            )
        if raw and kind in _FLOATS:
            floats.append((raw, _FLOATS[kind]))
        for (first, last), numbers in floats:
            many = (last - first) // np.dtype(numbers).itemsize
            if np.isnan(np.frombuffer(self._data, dtype=numbers, count=many, offset=first)).any():
                raise ArtifactError(
                    f"The ONNX model has NaN among {what}; roll back to an earlier version, or train again with a lower "
                    "learning rate."
                )

    def _text(self, value: _Value) -> str:
        if isinstance(value, int):
            raise _WireError("a number stands where a text should")
        return self._data[value[0] : value[1]].decode("utf-8", "replace")

    def _within(self, value: _Value) -> Iterator[tuple[int, _Value]]:
        """The fields of the message that a field holds."""
        if isinstance(value, int):
            raise _WireError("a number stands where a message should")
        return self._fields(*value)

    def _fields(self, position: int, end: int) -> Iterator[tuple[int, _Value]]:
        """Number and value of each field between two positions."""
        while position < end:
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise _WireError("it is no ONNX file")
            value: _Value
            if kind == _VARINT:
                value, position = self._varint(position, end)
            elif kind in (_BYTES, _EIGHT_BYTES, _FOUR_BYTES):
                length, position = (
                    self._varint(position, end) if kind == _BYTES else (8 if kind == _EIGHT_BYTES else 4, position)
                )
                value, position = (position, position + length), position + length
            else:
                raise _WireError("it is no ONNX file")
            if position > end:
                raise _WireError("it is cut short or damaged")
            yield number, value

    def _varints(self, span: tuple[int, int]) -> list[int]:
        position, end = span
        found = []
        while position < end:
            value, position = self._varint(position, end)
            found.append(value)
        return found

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise _WireError("it is cut short or damaged")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _WireError("it is no ONNX file")
