"""What a model folder's weights are, by the headers of its safetensors files: no tensor is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
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
        for tensor in _tensors(path):
            start, end = tensor["data_offsets"]
            num_parameters += math.prod(tensor["shape"])
            bytes_by_dtype[tensor["dtype"]] += end - start
    (most, _), *_ = bytes_by_dtype.most_common(1) or [("none", 0)]
    return Weights(num_parameters, bytes_by_dtype.total(), DTYPES.get(most, most.lower()))


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


def _tensors(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            header = _header(file)
            size = path.stat().st_size
        end = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                end = max(end, tensor["data_offsets"][1])
                yield tensor
    except FileNotFoundError:
        raise _refusal(f"{path} is missing. Fetch the folder again.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(f"{path} cannot be read ({error}). Fetch the folder again.") from None
    if size < end:
        raise _refusal(f"{path} is cut short: {size} bytes of at least {end}. Fetch the folder again.")


def _header(file: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError("it is not safetensors")
    header: dict[str, Any] = json.loads(file.read(length))
    return header


def _refusal(message: str) -> ConfigurationError:
    return ConfigurationError(message, exit_code=EXIT_MODEL)
