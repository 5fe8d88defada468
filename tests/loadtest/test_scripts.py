"""The load tests run as their first lines say, and count what really happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_encoder_decoders import write_tiny_encoder_decoder

SCRIPTS = Path(__file__).parents[2] / "loadtest"

pytestmark = pytest.mark.timeout(240)


def results_of(script: str, *arguments: str) -> Any:
    """The results in the file that the script saves; the file is removed."""
    command = [sys.executable, SCRIPTS / script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    saved = Path(run.stdout.strip().splitlines()[-1].removeprefix("saved to "))
    content = json.loads(saved.read_text())
    saved.unlink()
    assert content["machine"]["cpus"] >= 1
    return content["results"]


def test_throughput_compares_the_server_with_generate(tiny_llama):
    results = results_of("throughput.py", "--model", str(tiny_llama), "--streams", "1", "3", "--rounds", "1",
                         "--prompt-tokens", "8", "--new-tokens", "4", "--", "--threads", "1")  # fmt: skip
    assert [result["case"]["streams"] for result in results] == [1, 3]
    for result in results:
        [only] = result["rounds"]
        served, static = only["served"], only["static batch"]
        assert result["sides"]["served"]["x_static"] == pytest.approx(static["seconds"] / served["seconds"])
        assert served["tokens_per_s"] == pytest.approx(result["case"]["streams"] * 4 / served["seconds"])


def test_the_pace_of_streams_is_measured_without_and_with_long_sources(tmp_path):
    folder = write_tiny_encoder_decoder(tmp_path, "marian")
    results = results_of("source_pace.py", "--model", str(folder), "--long-tokens", "60", "--rounds", "1",
                         "--spell-s", "0.1", "--every-s", "0.02", "--dtype", "float32")  # fmt: skip
    for result in results.values():
        assert result["without"]["steps"] > 0
        assert result["with"]["ttft_ms"] > 0
        assert result["x_p95"] == pytest.approx(result["with"]["gap_p95_ms"] / result["without"]["gap_p95_ms"])


def test_an_attack_costs_other_clients_no_request_and_the_server_no_memory_and_no_block(tiny_llama):
    [result] = results_of("hostile.py", "--quick", "--model", str(tiny_llama), "--new-tokens", "200",
                          "--", "--threads", "1", "--kv-cache-gib", "0.02")  # fmt: skip
    assert result["broken"] == []
    assert result["done"]["cancel"] == result["scale"]["cancels"]
    assert result["attacked"]["requests"] == result["calm"]["requests"] > 0
