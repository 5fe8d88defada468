"""Reads Marian's binary model format, as Bergamot's translators are published: names, shapes, 8-bit matrices.

The file is little-endian: the version and the number of tensors (u64 each); four u64 for each tensor: length of the
name, type, number of dimensions, length of the data; all names; all shapes (i32); the length of a gap (u64) and the
gap; all data.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VERSION = 1
FLOAT32 = 0x404
INT8 = 0x4101
"""intgemm's 8-bit integers. The float after them is the multiplier that made integers of the weights."""

Tensors = dict[str, NDArray[np.float32]]


def read(path: Path) -> Tensors:
    """All tensors in float32, matrices as ``[in, out]`` and the embedding as ``[token, feature]``.

    Raises ValueError for a file of another format, and for one that is cut.
    """
    return _Reader(path.name, path.read_bytes()).tensors()


class _Reader:
    """A file's bytes and the place that is read next."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._data = memoryview(data)
        self._offset = 0

    def _take(self, num_bytes: int) -> memoryview:
        end = self._offset + num_bytes
        if end > len(self._data):
            raise ValueError(f"{self._name} is cut: it has {len(self._data)} bytes and needs at least {end}")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def _unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self._take(struct.calcsize("<" + layout)))

    def tensors(self) -> Tensors:
        version, count = self._unpack("QQ")
        if version != VERSION:
            raise ValueError(f"{self._name} is no Marian model of version {VERSION}: it begins with {version}")
        headers = [self._unpack("QQQQ") for _ in range(count)]
        names = [bytes(self._take(length)).rstrip(b"\0").decode() for length, *_ in headers]
        shapes = [self._unpack(f"{rank}i") for _, _, rank, _ in headers]
        (gap,) = self._unpack("Q")
        self._take(gap)
        found: Tensors = {}
        for name, shape, (_, kind, _, num_bytes) in zip(names, shapes, headers, strict=True):
            data = self._take(num_bytes)
            if not name.startswith("special:"):
                found[name] = self._values(name, kind, shape, data)
        return found

    def _values(self, name: str, kind: int, shape: tuple[int, ...], data: memoryview) -> NDArray[np.float32]:
        size = math.prod(shape)
        if kind == FLOAT32:
            return np.array(np.frombuffer(data, "<f4", count=size).reshape(shape), np.float32)
        if kind != INT8:
            raise ValueError(
                f"{self._name}: {name} has the type {kind:#x}; this reader knows {FLOAT32:#x} and {INT8:#x}"
            )
        (multiplier,) = np.frombuffer(data, "<f4", count=1, offset=size)
        weights: NDArray[np.float32] = np.divide(np.frombuffer(data, "i1", count=size), multiplier, dtype=np.float32)
        if name.startswith("Wemb"):
            return weights.reshape(shape)
        # Matrices lie transposed, as the 8-bit product reads them.
        return np.ascontiguousarray(weights.reshape(shape[::-1]).T)
