"""Load tests offer what their scenarios say, and their pages show what the clients saw."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare_runs
import load
import pytest
import scenarios
from client import Timeline

SCRIPTS = Path(__file__).parents[2] / "loadtest"

pytestmark = pytest.mark.timeout(240)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / "run.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def results_in(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert content["machine"]["cpus"] >= 1
    found: dict[str, Any] = content["results"]
    return found


TINY = """
rates = [4.0, 8.0]
clients = [2]
limits = { ttft_ms = 60000 }

[[request]]
route = "/generate"
length = [1, 2]
new_tokens = [4, 6]
"""


@pytest.fixture
def tiny_scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text('description = "A few tokens"\n' + TINY)
    return path


def test_both_loops_answer_every_request_and_the_page_holds_its_plots(tiny_server, tiny_scenario, tmp_path):
    into = tmp_path / "found.json"
    ran = run("--url", tiny_server.url, "--scenario", tiny_scenario, "--duration", 2, "--warm-up", 0, "--into", into)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = results_in(into)
    assert [point["rate"] for point in results["open"]] == [4.0, 8.0]
    assert [point["clients"] for point in results["closed"]] == [2]
    for point in results["open"] + results["closed"]:
        assert point["errors"] == {}
        assert point["num_requests"] == point["num_whole"] > 0
        assert point["outcomes"] == {"good": point["num_requests"]}
        assert point["tokens_per_s"] > 0
        # Tokens of one step, or of one read, have no time between them: with a tiny model that may be most of them.
        assert 0 <= point["gap_p50_s"] <= point["gap_p95_s"] <= point["gap_p99_s"] > 0
        assert 0 <= point["queue_p50_s"] < point["ttft_p50_s"] <= point["total_p50_s"]
    assert results["knee"] == 8.0
    page = into.with_suffix(".html").read_text()
    assert page.count("<figure") == page.count("<svg") == 8
    assert "A few tokens" in page and "<script" not in page and "http://127" not in page
    assert len(list(tmp_path.glob("found-*.png"))) == 8


def test_refused_requests_are_errors_and_no_rate_is_good(tiny_server, tiny_scenario, tmp_path):
    into = tmp_path / "found.json"
    ran = run("--url", tiny_server.url + "/nowhere", "--scenario", tiny_scenario, "--rates", 8, "--only", "open",
              "--duration", 1, "--warm-up", 0, "--into", into)  # fmt: skip
    assert ran.returncode == 1
    [point] = results_in(into)["open"]
    assert point["num_whole"] == 0
    assert point["errors"] == {"status 404": point["num_requests"]}
    assert point["outcomes"] == {"failed": point["num_requests"]}
    assert results_in(into)["knee"] is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--rates", 1, -1), "rates are"),
        (("--clients", 0), "clients are"),
        (("--duration", 0), "--duration is 0"),
        (("--url", "https://127.0.0.1:1"), "begin with http://"),
        (("--into", "nowhere/found.json"), "no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_or_saved_is_refused_before_anything_is_sent(tiny_scenario, arguments, problem):
    ran = run("--url", "http://127.0.0.1:1", "--scenario", tiny_scenario, *arguments)
    assert ran.returncode == 2 and problem in ran.stderr


def test_a_page_of_what_is_no_load_test_is_refused_in_a_line(tmp_path):
    command = [sys.executable, SCRIPTS / "load_report.py", tmp_path / "none.json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 2 and "is not the results of a load test" in ran.stderr


@pytest.mark.parametrize("name", scenarios.names())
def test_a_scenario_draws_the_same_requests_from_the_same_seed(name):
    scenario = scenarios.load(name)
    drawn = [scenario.draw(random.Random(seed)) for seed in range(20)]
    assert drawn == [scenario.draw(random.Random(seed)) for seed in range(20)]
    assert len({json.dumps(body) for _, body in drawn}) > 15
    assert {route for route, _ in drawn} <= {"/generate", "/classify", "/ner"}


def test_texts_of_a_shared_prefix_begin_alike_and_end_otherwise():
    scenario = scenarios.load("shared-prefix")
    texts = [scenario.draw(random.Random(seed))[1]["inputs"] for seed in range(5)]
    beginning = texts[0].partition(". ")[0]
    assert len(beginning.split()) == 500
    assert all(text.startswith(beginning) for text in texts) and len(set(texts)) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rates = [1.0]", "no [[request]]"),
        ('ratse = [1.0]\n[[request]]\nroute = "/generate"', "no ratse"),
        ('[[request]]\nroute = "/generate"\nlenght = [1, 2]', "no lenght"),
        ('[[request]]\nroute = "/generate"\ntext = "poems"', "text is poems"),
        ("[[request]]\nweight = 1", "route"),
        ('rates = [1.0, 0]\n[[request]]\nroute = "/generate"', "rates are [1.0, 0]"),
        ('clients = []\n[[request]]\nroute = "/generate"', "clients are []"),
        ("[[request]", "not valid TOML"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused_by_its_place(tmp_path, text, problem):
    path = tmp_path / "wrong.toml"
    path.write_text('description = "wrong"\n' + text)
    with pytest.raises(scenarios.ScenarioError, match=r"wrong\.toml") as found:
        scenarios.load(str(path))
    assert problem in str(found.value)


def timeline(ttft_s: float, gaps_s: list[float], *, status: int = 200, error: str | None = None) -> Timeline:
    times = [10.0 + ttft_s]
    for gap_s in gaps_s:
        times.append(times[-1] + gap_s)
    return Timeline(start=10.0, sent=10.0, token_times=times, end=times[-1], status=status, error=error)


def test_a_request_is_good_that_is_whole_and_within_every_limit():
    limits = scenarios.Limits(ttft_ms=200, gap_ms=50)
    timelines = [
        timeline(0.1, [0.04, 0.04]),
        timeline(0.3, [0.04]),
        timeline(0.1, [0.01, 0.12]),
        timeline(0.1, [], status=503, error="queue_full"),
        timeline(0.1, [], error="IncompleteAnswer"),
    ]
    found = load.summary(timelines, 2.0, 0.1, limits)
    assert found["outcomes"] == {"good": 1, "late": 2, "refused": 1, "failed": 1}
    assert found["good_share"] == 0.2


def test_the_knee_is_the_last_rate_before_the_first_that_was_too_much():
    points = [{"rate": rate, "good_share": share} for rate, share in ((4, 0.5), (1, 1.0), (2, 0.96), (8, 1.0))]
    assert load.knee(points) == 2.0
    assert load.knee(points[:1]) is None


def run_of(cpu: str, speed: float) -> dict[str, Any]:
    point = {"rate": 1.0, **dict.fromkeys(compare_runs.NUMBERS, 2.0), "tokens_per_s": speed, "gap_p50_s": None}
    return {
        "machine": {"cpu": cpu, "cpus": 2},
        "scenario": {"name": "x", "rates": [speed]},
        "results": {"open": [point], "closed": []},
    }


def test_two_runs_are_compared_load_by_load_and_what_moved_is_marked():
    [row] = compare_runs.rows(run_of("a", 100.0), run_of("a", 150.0))
    assert row[:3] == ["1/s", "1.00x", "1.50x *"]
    assert "-" in row
    with pytest.raises(compare_runs.NotComparable, match="machine"):
        compare_runs.rows(run_of("a", 100.0), run_of("b", 100.0))
