"""What probes see in each state of the server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx2
import pytest

from server import __version__, metrics
from server.protocol import Stats
from tests.api.scripted import front, happens, ready, says
from tests.api.shell import client_of, listening, shell

UP, DOWN = 200, 503
STATES = {
    # is_loaded, is_draining, workers up, live, requests of 8, mark in percent: /livez, /startupz, /readyz, /health
    "starting": ((False, False, False, True, 0, 0), (UP, DOWN, DOWN, DOWN)),
    "workers up, tokenizers not parsed": ((False, False, True, True, 0, 0), (UP, DOWN, DOWN, DOWN)),
    "ready": ((True, False, True, True, 0, 0), (UP, UP, UP, UP)),
    "restarting a worker": ((True, False, False, True, 0, 0), (UP, UP, DOWN, DOWN)),
    "draining": ((True, True, True, True, 0, 0), (UP, UP, DOWN, UP)),
    "draining while starting": ((False, True, False, True, 0, 0), (UP, DOWN, DOWN, DOWN)),
    "draining while restarting": ((True, True, False, True, 0, 0), (UP, UP, DOWN, DOWN)),
    "beyond repair": ((True, False, False, False, 0, 0), (500, UP, DOWN, DOWN)),
    "beyond repair while starting": ((False, False, False, False, 0, 0), (500, DOWN, DOWN, DOWN)),
    "beyond repair while draining": ((True, True, False, False, 0, 0), (500, UP, DOWN, DOWN)),
    "queue full": ((True, False, True, True, 8, 0), (UP, UP, UP, UP)),
    "queue below the mark": ((True, False, True, True, 3, 50), (UP, UP, UP, UP)),
    "queue at the mark": ((True, False, True, True, 4, 50), (UP, UP, DOWN, UP)),
    "queue at the mark while restarting": ((True, False, False, True, 4, 50), (UP, UP, DOWN, DOWN)),
}
CODES = {
    "starting": "starting",
    "restarting a worker": "engine_restarting",
    "draining": "draining",
    "queue at the mark": "queue_full",
}


def app_in(state: tuple[bool, bool, bool, bool, int, int]) -> Any:
    app = shell(max_queued_requests=8, unready_queue_percent=state[5])
    app.front.lifecycle.is_loaded, app.front.lifecycle.is_draining = state[:2]
    app.front.supervisor.is_up, app.front.supervisor.live = state[2:4]
    app.front.registry.admissions["tiny"].num_requests = state[4]
    return app


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_tell_the_truth(name, method):
    state, expected = STATES[name]
    client = client_of(app_in(state))
    paths = ("/livez", "/startupz", "/readyz", "/health")
    assert tuple(client.request(method, path).status_code for path in paths) == expected


@pytest.mark.parametrize("name", CODES)
def test_an_unready_server_says_why_and_when_to_ask_again(name):
    response = client_of(app_in(STATES[name][0])).get("/readyz")
    assert response.json()["error"]["code"] == CODES[name]
    assert int(response.headers["retry-after"]) >= 1


def test_a_draining_server_closes_its_connections():
    response = client_of(app_in(STATES["draining"][0])).get("/livez")
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("task", ["/generate", "/classify", "/ner", "/fill-mask"])
def test_health_and_info_are_found_below_each_tasks_address_too(task):
    client = client_of(app_in(STATES["ready"][0]))
    assert client.get(f"{task}/health").status_code == 200
    assert client.get(f"{task}/info").json() == client.get("/info").json()


def test_version_and_load_have_the_shapes_of_vllm():
    app = app_in(STATES["ready"][0])
    client = client_of(app)
    assert client.get("/version").json() == {"version": __version__}
    assert client.get("/load").json() == {"server_load": 0}
    with app.front.lifecycle.active():
        assert client.get("/load").json() == {"server_load": 1}


def test_info_names_the_models_and_the_limits_before_they_are_loaded():
    info = client_of(shell(max_batch_inputs=7)).get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["models"] == [{"name": "tiny", "state": "starting"}]
    assert info["limits"]["max_batch_inputs"] == 7
    assert info["version"]


@pytest.mark.parametrize(("is_reproducible", "reason"), [(True, None), (False, "Set deterministic.")])
def test_info_says_whether_one_seed_gives_one_text(is_reproducible: bool, reason: str | None) -> None:
    app = front(says("mill"))
    app.state.worker.ready = ready(reproducible=is_reproducible, reproducible_reason=reason)
    [model] = client_of(app).get("/info").json()["models"]
    assert model["reproducible"] is is_reproducible
    assert model.get("reproducible_reason") == reason


def test_info_says_which_cpu_kernels_are_used():
    app = front(says("mill"))
    app.state.worker.ready = ready(kernels="avx512")
    assert client_of(app).get("/info").json()["models"][0]["kernels"] == "avx512"


def test_info_reports_the_type_of_the_kv_cache_and_what_it_loses():
    app = front(says("mill"))
    app.state.worker.ready = ready(kv_dtype="auto", dtype="bfloat16")
    [model] = client_of(app).get("/info").json()["models"]
    assert (model["kv_dtype"], model.get("kv_cache_kl")) == ("bfloat16", None)
    app.state.worker.ready = ready(kv_dtype="int8", kv_cache_kl=0.0012)
    [model] = client_of(app).get("/info").json()["models"]
    assert (model["kv_dtype"], model["kv_cache_kl"]) == ("int8", 0.0012)


@pytest.mark.parametrize("learned", [None, 640])
def test_info_has_the_token_budget_that_the_worker_has_learned(learned: int | None) -> None:
    app = front(says("mill"))
    app.state.worker.token_budget = learned
    [model] = client_of(app).get("/info").json()["models"]
    assert model.get("token_budget") == learned


def test_metrics_are_served_while_every_thread_is_busy_with_a_long_text():
    app = shell()
    is_over = threading.Event()

    async def work() -> None:
        await asyncio.gather(*(asyncio.to_thread(is_over.wait, 30) for _ in range(40)))

    app.add_api_route("/work", work)
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}"
        client = threading.Thread(target=httpx2.get, args=[url + "/work"], kwargs={"timeout": 40})
        client.start()
        try:
            assert happens(lambda: app.front.lifecycle.num_active == 1)
            assert httpx2.get(url + "/metrics", timeout=30).status_code == 200
        finally:
            is_over.set()
            client.join()


def test_metrics_are_served_to_get_and_head():
    metrics.record_step("tiny", Stats(batch_size=2, batch_tokens=5, step_s=0.01))
    client = client_of(shell())
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert 'sluice_batch_requests_count{model="tiny"} 1.0' in response.text
    assert "_created" not in response.text
    head = client.head("/metrics")
    assert head.status_code == 200
    assert head.text == ""
    openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.text.endswith("# EOF\n")


def test_metrics_have_vllms_names_too_where_the_settings_say_so():
    metrics.record_step("tiny", Stats(num_waiting=3))
    name = 'vllm:num_requests_waiting{model_name="tiny"} 3.0'
    assert name in client_of(shell(vllm_metrics=True)).get("/metrics").text
    assert name not in client_of(shell()).get("/metrics").text


def test_the_documentation_names_every_route():
    client = client_of(shell())
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/generate", "/classify", "/ner", "/livez", "/metrics"} <= set(paths)
    assert client.get("/docs").status_code == 200
