"""Tools that measure a server, each unchanged: they find all they look for, and the figures are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import MODELS
from tests.clients.environments import python_with
from tests.clients.test_kits import KITS, run
from tests.server_process import ServerProcess, running_server

MODEL = "smollm2-135m-instruct"
TIMEOUT_S = 1500

pytestmark = [pytest.mark.clients, pytest.mark.defaults, pytest.mark.timeout(3 * TIMEOUT_S)]


@pytest.fixture(scope="module")
def open_server() -> Iterator[ServerProcess]:
    """One without keys, that computes as ``hf`` does in the harness: in float32."""
    flags = ["--model", f"{MODEL}={MODELS[MODEL]}", "--dtype", "float32", "--kv-cache-gib", "1"]
    with running_server(*flags) as running:
        yield running


def test_lm_evaluation_harness_prints_over_http_what_it_prints_of_the_same_folder(
    open_server: ServerProcess, tmp_path: Path
):
    python = python_with("lm_eval", ["lm-eval[api]>=0.4.13,<0.5"], beside_project=True)
    run([python, KITS / "lm_eval_kit.py"], open_server, tmp_path, timeout=TIMEOUT_S, HF_HUB_OFFLINE="1")


def test_guidellm_measures_without_a_warning_and_finds_all_it_looks_for(server: ServerProcess, tmp_path: Path):
    python = python_with("guidellm", ["guidellm>=0.8.1,<0.9"], beside_project=True)
    run([python, KITS / "guidellm_kit.py"], server, tmp_path, timeout=TIMEOUT_S, HF_HUB_OFFLINE="1")


def test_aiperf_counts_the_tokens_that_the_server_counts_and_reads_its_metrics(
    open_server: ServerProcess, tmp_path: Path
):
    # Of transformers 5 it does not understand how a template is applied, and counts prompts without it.
    python = python_with("aiperf", ["aiperf>=0.13,<0.14", "transformers<5"])
    run([python, KITS / "aiperf_kit.py"], open_server, tmp_path, timeout=TIMEOUT_S)


def test_locust_runs_the_scenarios_and_times_whole_answers_and_first_tokens(server: ServerProcess, tmp_path: Path):
    python = python_with("locust", ["locust>=2.47,<3"])
    run([python, KITS / "locust_kit.py"], server, tmp_path, timeout=TIMEOUT_S)
