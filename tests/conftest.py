"""Tiny models on disk and one real server over them, made once for all tests."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.client.environment import available_cpus, environment
from tests.server_process import ServerProcess, running_server
from tests.tiny_templates import write_templates

# Read when torch is imported. Threads that wait awake for long take their processor from the other test process: beside
# one, tests of products took five times as much processor time with the default. Workers have the same setting.
os.environ.setdefault("GOMP_SPINCOUNT", environment()["GOMP_SPINCOUNT"])

if forced := os.environ.get("SLUICE_KERNELS"):
    # Tests that choose kernels in their own process get these too. A set that cannot run here ends the session.
    from server.native import kernels

    kernels.AUTOMATIC = () if forced == "torch" else (f"_{forced}",)
    kernels.use(forced, 1)
    kernels.use("torch", 1)

TINY_SETTINGS = ("--dtype", "float32", "--threads", "1", "--kv-cache-gib", "0.02", "--drain-timeout-s", "60")
"""float32, so that tokens do not depend on who shares the batch; one thread a worker, for two cores are few."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than CPUs, for many tests wait, as far as each has 3 GiB of memory for its models and servers."""
    return max(1, min(available_cpus() + 1, psutil.virtual_memory().total // (3 << 30)))


@pytest.fixture(autouse=True)
def _same_kernels_for_all() -> Iterator[None]:
    """What a test chooses of the CPU kernels ends with it. A test that loads no kernels is not made to."""
    before = sys.modules.get("server.native.kernels")
    module = before and before.module()
    yield
    if (kernels := sys.modules.get("server.native.kernels")) is not None:
        kernels._State.module = module


@pytest.fixture(autouse=True)
def _same_log_for_all() -> Iterator[None]:
    """A test that sets up the server's log in its own process changes it for no other."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random decoder."""
    from tests.tiny_models import write_tiny_decoder

    return write_tiny_decoder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random sequence classifier."""
    from tests.tiny_encoders import write_encoder

    labels = ("negative", "neutral", "positive")
    return write_encoder(tmp_path_factory.mktemp("models") / "classifier", "bert", "classify", labels=labels)


@pytest.fixture(scope="session")
def tiny_tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random token classifier."""
    from tests.tiny_encoders import write_encoder

    return write_encoder(tmp_path_factory.mktemp("models") / "tagger", "bert", "ner")


@pytest.fixture(scope="session")
def tiny_models(tiny_llama: Path, tiny_classifier: Path, tiny_tagger: Path) -> tuple[str, ...]:
    """The command line that serves one model of each of three tasks: ``chat``, ``mood`` and ``names``."""
    folders = {"chat": tiny_llama, "mood": tiny_classifier, "names": tiny_tagger}
    flags = [flag for name, folder in folders.items() for flag in ("--model", f"{name}={folder}")]
    return (*flags, *TINY_SETTINGS)


@pytest.fixture(scope="session")
def tiny_server(tiny_models: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server over `tiny_models`, with templates and a long queue, shared: leave it as it was."""
    templates = write_templates(tmp_path_factory.mktemp("templates"))
    with running_server(*tiny_models, "--templates", str(templates), "--max-queued-tokens", "1000000") as server:
        yield server
