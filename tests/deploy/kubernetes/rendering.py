"""Runs kustomize over deploy/kubernetes and reads what comes out."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[3] / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())

Manifest = dict[str, Any]


def kustomize() -> list[str] | None:
    """The command that renders a folder, None where there is none."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else None


def rendered_text(folder: Path) -> str:
    command = kustomize()
    assert command is not None
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=True).stdout


@functools.cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Every object of an overlay, in the order in which they would be applied."""
    return tuple(yaml.safe_load_all(rendered_text(MANIFESTS / "overlays" / overlay)))


def write_own_overlay(folder: Path) -> None:
    """The one that deploy/README.md shows, beside a copy of our folder: GPUs with every component."""
    readme = (MANIFESTS.parent / "README.md").read_text()
    [kustomization] = re.findall(r"^```yaml\n(apiVersion: kustomize.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    shutil.copytree(MANIFESTS, folder / "sluice/deploy/kubernetes")
    (folder / "kustomization.yaml").write_text(kustomization)
    (folder / "sluice.toml").write_text('[[models]]\npath = "/models/mine"\n')


def of_kind(manifests: tuple[Manifest, ...] | list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]
