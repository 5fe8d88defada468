"""Builds the image from the Dockerfile, without Docker and without an image registry.

buildah runs the Dockerfile's steps in a chroot. The base image is made with debootstrap, the Python packages are
downloaded with this machine's pip before, and both are kept in the cache, so that a second build is quick.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.deploy.environments import CACHE

ROOT = Path(__file__).parents[2]
FOLDER = CACHE / "image"
WHEELS = FOLDER / "wheels"
BASE = "localhost/python:3.11-bookworm"
IMAGE = "localhost/sluice"
PYTHON = "3.11"
"""That of the Debian release."""
DEBIAN = "bookworm"


def run(*command: str | Path, **options: Any) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def buildah(*arguments: str | Path) -> str:
    """With a store of its own."""
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    store = ("--root", FOLDER / "store", "--runroot", "/run/sluice-image", "--storage-driver", "overlay")
    return run("buildah", *store, *arguments, env=environment)


def make_base() -> None:
    """A small Debian with Python, under the name ``BASE``; made once."""
    if BASE in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return
    # With Python's headers, as the public image has them: the kernels are compiled with them.
    packages = "ca-certificates,libpython3-dev,python3,python3-venv"
    root = FOLDER / "base"
    shutil.rmtree(root, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    run("debootstrap", "--variant=minbase", f"--include={packages}", DEBIAN, root)
    for leftovers in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / leftovers)
        (root / leftovers / "partial").mkdir(parents=True)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def download_wheels() -> None:
    """Every package of the lock, as this machine's pip finds it; downloaded once for each lock.

    ``TORCH_CPU_INDEX`` has the Dockerfile's meaning.
    """
    lock = (ROOT / "deploy/requirements.lock").read_text()
    stamp = WHEELS / "complete"
    if stamp.exists() and stamp.read_text() == lock:
        return
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    torch, others = FOLDER / "torch.txt", FOLDER / "others.txt"
    stanzas = re.findall(r"^[a-z](?:.*\\\n)*.*\n", lock, re.MULTILINE)
    torch.write_text("".join(stanza for stanza in stanzas if stanza.startswith("torch==")))
    others.write_text("".join(stanza for stanza in stanzas if not stanza.startswith("torch==")))
    index = os.environ.get("TORCH_CPU_INDEX")
    pip = (sys.executable, "-m", "pip", "download", "-qq", "--dest", WHEELS, "--no-deps", "--require-hashes")
    pip = (*pip, "--python-version", PYTHON, "--only-binary", ":all:")
    run(*pip, *(("--index-url", index) if index else ()), "--requirement", torch)
    run(*pip, "--requirement", others)
    stamp.write_text(lock)


def build() -> None:
    """The image under the name ``IMAGE``, from what is committed and what is not."""
    make_base()
    download_wheels()
    configuration = FOLDER / "pip.conf"
    configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    buildah(
        *("build", "--layers", "--force-rm", "--format", "docker", "--pull=never", "--tag", IMAGE),
        *("--volume", f"{configuration}:/etc/pip.conf:ro", "--volume", f"{WHEELS}:/wheels:ro"),
        *("--build-arg", f"BASE={BASE}", "--build-arg", "VARIANT=cpu", ROOT),
    )


def config() -> dict[str, Any]:
    """What the image says of itself: user, variables, commands, health check."""
    return dict(json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"])


def size_bytes(name: str) -> int:
    """Of an image's files, all layers together."""
    container = buildah("from", "--pull-never", name)
    try:
        return int(run("du", "--summarize", "--bytes", buildah("mount", container)).split()[0])
    finally:
        buildah("rm", container)
