"""Each client library does with a real server what its own documentation shows, with nothing changed but the address.

A kit is a program of a user's: it ends with 0 if every answer was what the library promises, else says what was not.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients.conftest import KEY
from tests.clients.environments import node_with, python_with
from tests.server_process import ServerProcess

KITS = Path(__file__).parent / "kits"

pytestmark = [pytest.mark.clients, pytest.mark.defaults, pytest.mark.timeout(1500)]

PYTHON_KITS = {
    "openai": ["openai>=3,<4", "pydantic>=2"],
    "openai_tools": ["openai>=3,<4", "pydantic>=2"],
    "anthropic": ["anthropic>=2,<3"],
    "text_generation": ["text-generation>=0.7,<0.8"],
    "langchain": ["langchain-openai>=1.7,<2"],
    "litellm": ["litellm>=1.83,<2,!=1.82.7,!=1.82.8"],
    "llm": ["llm>=0.36,<1"],
    "pydantic_ai": ["pydantic-ai-slim[openai]"],
    "instructor": ["instructor"],
    "libretranslate": ["libretranslatepy>=2.1.4,<3"],
    "huggingface": ["huggingface_hub>=2.4,<3", "numpy"],
}
ENVIRONMENTS = {"openai_tools": "openai"}
"""Kits that run in the environment of another."""


@pytest.mark.parametrize("name", PYTHON_KITS)
def test_a_client_library_gets_what_it_expects(name: str, server: ServerProcess, tmp_path: Path):
    run([python_with(ENVIRONMENTS.get(name, name), PYTHON_KITS[name]), KITS / f"{name}_kit.py"], server, tmp_path)


@pytest.mark.parametrize("name", ["vercel", "huggingface_js"])
def test_a_client_library_on_node_gets_what_it_expects(name: str, server: ServerProcess, tmp_path: Path):
    folder = node_with(name, KITS / name)
    program = folder / "kit.mjs"
    program.write_text((KITS / name / "kit.mjs").read_text())
    run(["node", program], server, tmp_path)


def run(
    command: Sequence[str | Path], server: ServerProcess, folder: Path, *, timeout: float = 300, **variables: str
) -> None:
    """The program, with the server's address and key in its environment and a home of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "SERVER": server.url,
        "OPENAI_BASE_URL": server.url + "/v1",
        "OPENAI_API_KEY": KEY,
        "SLUICE_API_KEY": KEY,
        "HF_TOKEN": KEY,
        "HOME": str(folder),
        "LLM_USER_PATH": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **variables,
    }
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\n{server.logs()[-2000:]}"
