"""deploy/requirements.lock, from which the image is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.test_files import instructions

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy/requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", LOCK, re.MULTILINE))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def installed_as_locked() -> list[str]:
    return [name for name, version in LOCKED.items() if version_here(name) == version]


def version_here(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_satisfied(requirement: Requirement) -> bool:
    version = LOCKED.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def test_the_lock_names_every_runtime_dependency_in_its_range():
    needed = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    assert [str(requirement) for requirement in needed if not is_satisfied(requirement)] == []


def test_the_lock_holds_what_builds_the_package():
    assert all(is_satisfied(Requirement(text)) for text in PYPROJECT["build-system"]["requires"])


def test_the_lock_names_what_its_packages_need():
    """As the packages say that are installed here in the locked version."""
    names = installed_as_locked()
    if len(names) < len(LOCKED) / 2:
        pytest.skip("most packages have other versions here")
    extras = {
        canonicalize_name(each.name): each.extras for each in map(Requirement, PYPROJECT["project"]["dependencies"])
    }
    for name in names:
        for requirement in map(Requirement, metadata.requires(name) or []):
            wanted = [{"extra": extra} for extra in ("", *extras.get(name, ()))]
            if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
                assert is_satisfied(requirement), f"{name} needs {requirement}"


def test_every_package_of_the_lock_has_hashes():
    stanzas = re.findall(r"^([a-z0-9.-]+)==\S+((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", LOCK, re.MULTILINE)
    assert [name for name, _ in stanzas] == list(LOCKED)


def test_the_lock_takes_torch_without_cuda_and_names_no_index():
    assert LOCKED["torch"].endswith("+cpu")
    assert "://" not in LOCK


def test_the_image_installs_only_what_the_lock_pins():
    """But CUDA's build of the locked torch, which pins its libraries itself."""
    commands = [part for step in instructions("RUN") for part in re.findall(r"pip install ([^;&|]*)", step)]
    assert len(commands) == 4
    free = [each for each in commands if "--require-hashes" not in each and "--no-build-isolation ." not in each]
    assert [each.split()[0] for each in free] == ['"$(grep'] and "'^torch==[0-9.]*' torch.txt" in free[0]
    assert all("--no-deps" in each for each in commands if each not in free)
