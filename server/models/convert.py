"""Copies what serving reads of a model folder, and converts its pickled weights to safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from server.models.checksums import MANIFEST, check_folder
from server.models.configs import first_line, read_config
from server.models.describe import read_json, refuse
from server.models.folder import WEIGHTS
from server.models.module import LOAD_FAILURES
from server.models.pickled_weights import read_pickled
from server.write_errors import write_problem

PICKLED = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
"""Files with all weights, and what they become."""
INDEX = "pytorch_model.bin.index.json"
MOST_COPIES = 16
"""A file's tensors together have at most this many times its bytes. Tensors that share memory are copied."""
LEFT_OUT = {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".pkl", ".pickle", ".py", ".pyc"}
"""Endings of files that serving does not read: weights in other formats, and code."""


@dataclass(frozen=True)
class Converted:
    num_tensors: int
    num_bytes: int
    """Of all tensors."""


def check_source(folder: Path) -> None:
    """Raises `ConfigurationError` where there is nothing to convert."""
    if not folder.is_dir():
        raise refuse(f"There is no folder {folder}. Check the path.")
    if any((folder / name).is_file() for name in (*WEIGHTS, "adapter_model.safetensors")):
        raise refuse(f"{folder} has its weights in safetensors already. Serve this folder.")
    found = [name for name in (*PICKLED, INDEX) if (folder / name).is_file()]
    if not found:
        raise refuse(f"{folder} has no pytorch_model.bin. Give the path of a complete Hugging Face model folder.")
    if len(found) > 1:
        raise refuse(f"{folder} has both {found[0]} and {found[1]}. Convert each in a folder of its own.")
    check_folder(folder)


def convert(folder: Path, result: Path) -> Converted:
    """Fill ``result``, which is empty."""
    for path in _others(folder):
        place = result / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    tied = _tied(folder)
    single = next((name for name in PICKLED if (folder / name).is_file()), None)
    if single is not None:
        tensors = _write(folder / single, result / PICKLED[single], tied)
        return Converted(len(tensors), sum(tensors.values()))
    return _convert_shards(folder, result, tied)


def _convert_shards(folder: Path, result: Path, tied: Mapping[str, str]) -> Converted:
    sizes: dict[str, int] = {}
    places: dict[str, str] = {}
    for name in _shards(folder):
        place = name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
        tensors = _write(folder / name, result / place, tied)
        sizes |= tensors
        places |= dict.fromkeys(tensors, place)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (result / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return Converted(len(sizes), sum(sizes.values()))


def _shards(folder: Path) -> list[str]:
    names = read_json(folder, INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise refuse(f"{folder / INDEX} has no weight_map. Fetch the folder again.")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".bin"):
            raise refuse(f"{folder / INDEX} names {str(name)[:100]}, which is not a file of weights in the folder.")
        if not (folder / name).is_file():
            raise refuse(f"{folder / name} is missing. Fetch the folder again.")
    return sorted(set(names.values()))


def _write(path: Path, place: Path, tied: Mapping[str, str]) -> dict[str, int]:
    """Bytes of each tensor that was written."""
    tensors = _apart(path, read_pickled(path), tied)
    try:
        save_file(tensors, place, metadata={"format": "pt"})
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if write_problem(error) is not None:
            raise
        raise refuse(f"{path} cannot be converted ({first_line(error)}). Save the model again.") from error
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def _apart(path: Path, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with memory of their own: one that the model ties to another is left out, any other is copied."""
    kept: dict[str, Tensor] = {}
    memories: set[int] = set()
    room = MOST_COPIES * path.stat().st_size
    for name, tensor in tensors.items():
        source = tensors.get(tied.get(name, name), tensor)
        if source is not tensor and _is_same(tensor, source):
            continue
        room -= tensor.nbytes
        if room < 0:
            raise refuse(
                f"{path} repeats its weights: with {name[:100]} its tensors have over {MOST_COPIES} times the bytes "
                "of the file. Save the model again without expanded tensors."
            )
        memory = tensor.untyped_storage().data_ptr()
        kept[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in memories else tensor.contiguous()
        memories.add(memory)
    return kept


def _is_same(one: Tensor, other: Tensor) -> bool:
    return (one.data_ptr(), one.shape, one.stride(), one.dtype) == (
        other.data_ptr(), other.shape, other.stride(), other.dtype
    )  # fmt: skip


def _tied(folder: Path) -> dict[str, str]:
    """Name of a tensor -> name of that which the architecture uses in its place."""
    if not (folder / "config.json").is_file():
        return {}
    try:
        config = read_config(folder)
        architecture: Any = getattr(transformers, (config.architectures or [""])[0], None)
        if architecture is None:
            return {}
        with torch.device("meta"):
            return dict(architecture(config).all_tied_weights_keys)
    except LOAD_FAILURES:
        # An architecture that cannot be made: every tensor is written.
        return {}


def _others(folder: Path) -> Iterator[Path]:
    """Files to copy. The manifest would not fit any more."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not is_hidden and path.suffix not in LEFT_OUT and path.name not in (MANIFEST, INDEX):
            yield path
