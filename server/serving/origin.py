"""Where a served model comes from, as clients see it: its folder's name, its base, and a fingerprint of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from server import __version__
from server.config import ModelConfig
from server.protocol import Ready

MEASURED = (
    "adapters", "load_s", "quantization_kl", "kv_cache_kl", "kv_cache_bytes", "num_blocks", "token_budget",
    "dtype_reason",
)  # fmt: skip
"""Fields of `Ready` that may differ between two starts of one model, and those that say nothing of it."""
UNSEEN = ("path", "base", "max_adapter_gib")
"""Settings that say nothing of what a model computes."""
SAMPLES = 16
SAMPLE_BYTES = 4096
"""This many pieces of each weight file are read: fine-tuning changes them all, and reading all of it takes seconds."""


@dataclass(frozen=True)
class Origin:
    """One served model's."""

    root: str
    """The name of the model's folder."""
    parent: str | None
    """For an adapter, the name of its base: of the model that is served, else of the folder."""
    fingerprint: str
    """The same for two servers of one version, model and settings; any change of these changes it."""


def origin_of(model: ModelConfig, ready: Ready, *, parent: str | None = None, version: str = "") -> Origin:
    """``parent`` is the served model of an adapter's base, ``version`` an adapter's digest.

    Reads files: call it in a thread.
    """
    folder = Path(model.path)
    base = _base(folder, model.base)
    digest = hashlib.sha256(__version__.encode())
    settings = {name: value for name, value in asdict(model).items() if name not in UNSEEN}
    facts = {name: getattr(ready, name) for name in ready.__struct_fields__ if name not in MEASURED}
    digest.update(msgspec.json.encode([settings, facts, version], order="deterministic"))
    for part in _samples([folder] if base is None else [folder, base]):
        digest.update(part)
    return Origin(folder.name, None if base is None else parent or base.name, f"fp_{digest.hexdigest()[:16]}")


def _base(folder: Path, named: str | None) -> Path | None:
    """The folder that an adapter belongs to; None for a model that is whole."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return folder / (named or config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _samples(folders: list[Path]) -> Iterator[bytes]:
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        size = path.stat().st_size
        yield f"{path.name} {size} ".encode()
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                yield file.read(SAMPLE_BYTES)
