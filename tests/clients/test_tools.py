"""Tools that measure a server, each unchanged: they find all they look for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import python_with
from tests.clients.test_kits import KITS, run
from tests.server_process import ServerProcess

TIMEOUT_S = 1500

pytestmark = [pytest.mark.clients, pytest.mark.defaults, pytest.mark.timeout(3 * TIMEOUT_S)]


def test_guidellm_measures_without_a_warning_and_finds_all_it_looks_for(server: ServerProcess, tmp_path: Path):
    python = python_with("guidellm", ["guidellm>=0.8.1,<0.9"], beside_project=True)
    run([python, KITS / "guidellm_kit.py"], server, tmp_path, timeout=TIMEOUT_S, HF_HUB_OFFLINE="1")


def test_locust_runs_the_scenarios_and_times_whole_answers_and_first_tokens(server: ServerProcess, tmp_path: Path):
    python = python_with("locust", ["locust>=2.47,<3"])
    run([python, KITS / "locust_kit.py"], server, tmp_path, timeout=TIMEOUT_S)
