"""A small measurement: what it asks, and that its numbers are those of what came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.commands.measurement import Prompts, Sample, summary
from tests.commands.fake_server import fake_server
from tests.commands.processes import run
from tests.server_process import ServerProcess


def test_the_numbers_are_those_of_the_samples():
    samples = [
        Sample(0.0, [0.1, 0.2, 0.4], num_prompt_tokens=10, num_tokens=3),
        Sample(1.0, [1.3, 1.5], num_prompt_tokens=20, num_tokens=2),
        Sample(1.0, error="refused"),
    ]
    found = summary(samples)
    assert (found["num_requests"], found["num_failed"]) == (3, 1)
    assert found["duration_s"] == pytest.approx(1.5)
    assert found["tokens_per_s"] == pytest.approx(5 / 1.5)
    assert found["ttft_s"] == pytest.approx({"p50": 0.1, "p95": 0.3})
    assert found["gap_s"] == pytest.approx({"p50": 0.2, "p95": 0.2})
    assert (found["prompt_tokens"], found["new_tokens"]) == (15, 2.5)


def test_without_one_good_request_there_are_no_numbers():
    assert summary([Sample(0.0, error="refused")]) == {"num_requests": 1, "num_failed": 1}


def test_prompts_are_made_to_length_and_no_two_are_alike():
    prompts = Prompts(100, seed=0)
    prompts.calibrate(num_words=100, num_tokens=200)
    found = {prompts.next() for _ in range(20)}
    assert len(found) == 20
    assert {number for _, number in found} == {50}


@pytest.mark.parametrize("load", [["--streams", "3"], ["--rate", "200"]])
def test_a_real_server_is_measured(load: list[str], tiny_server: ServerProcess, tmp_path: Path):
    path = tmp_path / "out.json"
    size = ["--requests", "6", "--prompt-tokens", "40", "--new-tokens", "8"]
    done = run("bench", "--url", tiny_server.url, *load, *size, "--json", path)
    assert done.returncode == 0, done.stderr
    for row in ("time to first token", "gap between tokens", "tokens/s"):
        assert row in done.stdout
    report = json.loads(path.read_text())
    assert report["model"]["name"] == "chat"
    results = report["results"]
    assert (results["num_requests"], results["num_failed"], results["new_tokens"]) == (6, 0, 8)
    assert 20 <= results["prompt_tokens"] <= 80


def test_requests_that_fail_are_counted_and_the_exit_code_says_so():
    with fake_server(refusals=[(503, "queue_full", "Full.")]) as server:
        first = run("bench", "--url", server.url, "--requests", "4")
        server.refuse_from = 2
        done = run("bench", "--url", server.url, "--requests", "4", "--json", "-")
    assert (first.returncode, first.stderr) == (1, "sluice: The first request failed: Full.\n")
    assert json.loads(done.stdout)["results"]["num_failed"] == 4
    assert done.returncode == 1
    assert "4 of 4 requests failed, the first one: The server is full." in done.stderr


def test_a_stream_that_breaks_off_is_no_measured_request():
    with fake_server(breaks_after=2) as server:
        done = run("bench", "--url", server.url)
    assert "The stream ended before the response was complete." in done.stderr
    assert done.returncode == 1


def test_so_many_requests_are_asked_at_once_as_there_are_streams():
    with fake_server(words=["a"] * 4, pause_s=0.1) as server:
        done = run("bench", "--url", server.url, "--streams", "4", "--requests", "8")
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 9
    assert server.most_streams == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--streams", "0"], "--streams is 0: it must be at least 1."),
        (["--rate", "0"], "--rate is 0.0: it must be above 0."),
        (["--rate", "1", "--streams", "2"], "not allowed with argument"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(words: list[str], message: str):
    done = run("bench", "--url", "http://127.0.0.1:9", *words)
    assert done.returncode == 2
    assert message in done.stderr
