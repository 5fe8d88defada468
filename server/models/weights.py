"""What a model folder's weights are, by the headers of its safetensors files: no tensor is read."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from server.errors import EXIT_MODEL, ConfigurationError

SINGLE = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the format."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "I8": "int8"}
"""Names of the format -> torch's."""
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}
"""Of one number of a type; a type that is not here is not checked."""


@dataclass(frozen=True)
class Weights:
    """All tensors of a folder together."""

    num_parameters: int
    num_bytes: int
    dtype: str
    """Of most of them."""


def read_weights(folder: Path) -> Weights:
    """Raises `ConfigurationError` where a file is missing or is not what it should be."""
    num_parameters = 0
    bytes_by_dtype: Counter[str] = Counter()
    for path in _files(folder):
        for tensor in tensors(path).values():
            start, end = tensor["data_offsets"]
            num_parameters += math.prod(tensor["shape"])
            bytes_by_dtype[tensor["dtype"]] += end - start
    (most, _), *_ = bytes_by_dtype.most_common(1) or [("none", 0)]
    return Weights(num_parameters, bytes_by_dtype.total(), DTYPES.get(most, most.lower()))


def shapes(folder: Path) -> dict[str, list[int]]:
    """Of each tensor by its name. Raises `ConfigurationError` as `read_weights` does."""
    return {name: tensor["shape"] for path in _files(folder) for name, tensor in tensors(path).items()}


def _files(folder: Path) -> list[Path]:
    single = [folder / name for name in SINGLE if (folder / name).is_file()]
    if single:
        return single
    if not (folder / INDEX).is_file():
        raise _refusal(f"{folder} has no {SINGLE[0]}. Give the path of a complete Hugging Face model folder.")
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _refusal(f"{folder / INDEX} cannot be read. Fetch the folder again.") from None
    return sorted(folder / name for name in names)


def tensors(path: Path) -> dict[str, dict[str, Any]]:
    """What the header says of each tensor, once it agrees with itself and with the file's size."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, header = _header(file, size)
        header.pop("__metadata__", None)
        end = max((_end(name, tensor) for name, tensor in header.items()), default=0)
    except FileNotFoundError:
        raise _refusal(f"{path} is missing. Fetch the folder again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refusal(f"{path} cannot be read ({_reason(error)}). Fetch the folder again.") from None
    if size < start + end:
        raise _refusal(f"{path} is cut short: {size} bytes of {start + end}. Fetch the folder again.")
    return header


def _header(file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and the header."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES:
        raise ValueError("it is not a safetensors file")
    if 8 + length > size:
        raise ValueError(f"its header has {length} bytes, and the file {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return 8 + length, header


def _end(name: str, tensor: dict[str, Any]) -> int:
    """The place behind a tensor's last byte, counted from the first tensor."""
    start, end = tensor["data_offsets"]
    shape, dtype = tensor["shape"], tensor["dtype"]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or end < start:
        raise ValueError(f"the header's entry for {name[:100]} has wrong numbers")
    bits = BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (end - start) * 8:
        raise ValueError(f"{name[:100]} has {end - start} bytes and the shape {shape} in {dtype}")
    return int(end)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its header is nested too deeply"
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return "its header is not JSON"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, ValueError):
        return "its header has an entry without shape, type or place"
    return " ".join(str(error).split())[:300]


def _refusal(message: str) -> ConfigurationError:
    return ConfigurationError(message, exit_code=EXIT_MODEL)
