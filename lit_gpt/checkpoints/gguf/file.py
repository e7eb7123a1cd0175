"""Open a GGUF file: read its key-value pairs and tensor table first, and the tensors' values on demand.

The layout is that of ggml's `docs/gguf.md`: magic, version, two counts, key-value pairs, one description per tensor,
and the tensors' data at aligned offsets. The `gguf` package implements the quantization types and dequantizes; its own
reader is not used, because it keeps an array for each string of the vocabulary (5 s and 1 GB for 49,152 tokens,
compared with 0.1 s here) and does not check that the file is complete.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.tensors import Stored
from lit_gpt.errors import UserError
from lit_gpt.extras import installed_version, need

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
"""Alignment of the tensors' data in bytes, if `general.alignment` does not set another."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct`'s format letter of each value type with a fixed size."""
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MAX_DIMS = 4
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Tensor types that also exist in torch."""


@dataclass(frozen=True)
class GGUFFile:
    """The contents of a GGUF file."""

    path: Path
    metadata: dict[str, Any]
    """Key-value pairs; a float32 is the shortest decimal number that rounds to it (1e-05, not 9.99999974e-06)."""
    tensors: dict[str, Stored]
    """Tensors by name, with shapes in torch's order; quantized ones are dequantized to float32 when they are read."""
    types: dict[str, str]
    """The name of each tensor's type, such as "Q4_K"."""


def open_gguf(path: str | Path) -> GGUFFile:
    """Read a file's key-value pairs and tensor table.

    Raises:
        UserError: If it is not a GGUF file, has another byte order or version, is truncated or damaged, is one of
            several parts, or has a tensor of an unknown type; the message names the remedy.
    """
    path = Path(path)
    with open(path, "rb") as opened:
        if opened.read(4) != _MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not begin with the letters GGUF; download it again")
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    header = _Header(path, data)
    metadata, table = header.read()
    if (parts := metadata.get("split.count", 1)) > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; join them with llama.cpp's `llama-gguf-split --merge`"
        )
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise UserError(f"{path} is damaged: general.alignment is {alignment!r}; download it again")
    start = -(-header.offset // alignment) * alignment
    names: dict[int, str] = {}
    for name, (_, kind, _) in table.items():
        if kind not in names:
            names[kind] = _type_name(path, name, kind)
    types = {name: names[kind] for name, (_, kind, _) in table.items()}
    tensors = {
        name: _stored(path, data, start + offset, name, shape, types[name])
        for name, (shape, _, offset) in table.items()
    }
    return GGUFFile(path, metadata, tensors, types)


class _Header:
    """A cursor over everything before the tensors' data."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, len(_MAGIC)

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]]]:
        """Return the key-value pairs, and (shape, type, offset) of each tensor."""
        version = self._scalar("I")
        if version & 0xFFFF == 0:  # a small number in the other byte order
            raise UserError(
                f"{self.path} has the other byte order (big-endian); convert it with the gguf package's "
                "`gguf-convert-endian`"
            )
        if version not in _VERSIONS:
            raise UserError(
                f"{self.path} is GGUF version {version}, but lit_gpt reads {' and '.join(map(str, _VERSIONS))}; "
                "convert the model again with a current llama.cpp"
            )
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        metadata = dict(self._distinct("key", pairs, lambda: self._value(self._scalar("I"))))
        return metadata, dict(self._distinct("tensor", tensors, self._description))

    def _distinct(self, what: str, count: int, read: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for _ in range(count):
            name = self._string()
            if name in seen:
                raise UserError(f"{self.path} is damaged: it has the {what} {name!r} twice; download it again")
            seen.add(name)
            yield name, read()

    def _description(self) -> tuple[tuple[int, ...], int, int]:
        dims = self._scalar("I")
        if dims > _MAX_DIMS:
            raise UserError(f"{self.path} is damaged: a tensor has {dims} dimensions; download it again")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dims)]))  # ggml lists the fastest dimension first
        return shape, self._scalar("I"), self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            if inner in _SCALARS:
                letter = np.dtype(_SCALARS[inner]).newbyteorder("<")
                values = np.frombuffer(self._take(count * letter.itemsize), letter).tolist()
                return [_shortest(value) for value in values] if inner == _FLOAT32 else values
            return [self._value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise UserError(f"{self.path} is damaged: a value has the unknown type {kind}; download it again")
        value = self._scalar(_SCALARS[kind])
        return _shortest(value) if kind == _FLOAT32 else value

    def _string(self) -> str:
        content = self._take(self._scalar("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is damaged: a string is not UTF-8 ({error}); download it again") from error

    def _scalar(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter)))[0]

    def _take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self.data):
            raise _cut_short(self.path, end, len(self.data))
        taken, self.offset = self.data[self.offset : end], end
        return taken


def _cut_short(path: Path, needed: int, size: int) -> UserError:
    return UserError(f"{path} is truncated: it has {size:,} bytes but needs at least {needed:,}; download it again")


def _shortest(value: float) -> float:
    """Return the shortest decimal number that rounds to a float32, as a float: 0.22, not 0.21999999881."""
    return float(str(np.float32(value))) if math.isfinite(value) else value


def _type_name(path: Path, name: str, kind: int) -> str:
    gguf = need("gguf", "export", "reading a GGUF file")
    try:
        found = gguf.GGMLQuantizationType(kind)
        gguf.quant_shape_to_byte_shape((gguf.GGML_QUANT_SIZES[found][0],), found)
        if found.name not in _PLAIN:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[found][1]), np.uint8), found)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path} has {name} in type {kind}, which gguf {installed_version('gguf')} cannot dequantize; upgrade that "
            "package, or use a file of another type"
        ) from error
    return str(found.name)


def _stored(path: Path, data: mmap.mmap, begin: int, name: str, shape: tuple[int, ...], type_name: str) -> Stored:
    gguf = need("gguf", "export", "reading a GGUF file")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    if not shape or shape[-1] % block:
        raise UserError(
            f"{path} is damaged: {name} of shape {shape} is not a multiple of its block size {block}; download it again"
        )
    nbytes = math.prod(shape) // block * size
    if begin + nbytes > len(data):
        raise _cut_short(path, begin + nbytes, len(data))
    return Stored(partial(_read, data, begin, nbytes, type_name, shape), _PLAIN.get(type_name, torch.float32), shape)


def _read(data: mmap.mmap, begin: int, nbytes: int, type_name: str, shape: tuple[int, ...]) -> Tensor:
    if type_name in _PLAIN:
        return torch.frombuffer(bytearray(data[begin : begin + nbytes]), dtype=_PLAIN[type_name]).reshape(shape)
    gguf = need("gguf", "export", "reading a GGUF file")
    rows = np.frombuffer(data, np.uint8, nbytes, begin).reshape(math.prod(shape[:-1]), -1)
    values = gguf.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape)
