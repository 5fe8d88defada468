"""Two replicas on a real Ray Serve: streams live, deaths of replicas and workers, and more replicas for more work."""

from __future__ import annotations

import asyncio
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploy.environments import programs
from tests.deploy.ray.cluster import Cluster, running_cluster, standing_still
from tests.system.clients import Outcome, body, eventually, generate_all

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
NUM_TOKENS = 450

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster(tiny_llama: Path) -> Iterator[Cluster]:
    """Two replicas of a tiny decoder, and a third where more than four requests a replica are under way."""
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["ray"]
    variables = {
        "SLUICE_MODEL": f"tiny={tiny_llama}",
        "SLUICE_THREADS": "1",
        "SLUICE_DTYPE": "float32",
        "SLUICE_KV_CACHE_GIB": "0.02",
    }
    scaling = {"max_replicas": 3, "target_ongoing_requests": 4, "upscale_delay_s": 1}
    with running_cluster(
        programs("ray", *requirements, beside_ours=True), variables, autoscaling_config=scaling
    ) as found:
        assert eventually(lambda: len(found.replicas()) == 2, 120)
        yield found


class Requests:
    """Streams that begin at once, in a thread, so that the test can act while they run."""

    def __init__(self, url: str, number: int, num_tokens: int = NUM_TOKENS) -> None:
        self.has_begun = threading.Event()
        self.num_events = 0
        self._outcomes: list[Outcome | BaseException] = []
        bodies = [body(f"Number {i}", stream=True, max_new_tokens=num_tokens) for i in range(number)]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(url, bodies)), daemon=True)
        self._thread.start()

    async def _run(self, url: str, bodies: list[dict[str, Any]]) -> None:
        waits = (generate_all(url, [one], self._on_event) for one in bodies)
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            self._outcomes.append(outcome if isinstance(outcome, BaseException) else outcome[0])

    def _on_event(self) -> None:
        self.num_events += 1
        self.has_begun.set()

    def num_whole(self) -> int:
        """How many were answered to their end, once all have ended."""
        self._thread.join(300)
        assert not self._thread.is_alive()
        return sum(isinstance(outcome, Outcome) and outcome.is_whole for outcome in self._outcomes)


def test_a_stream_passes_token_by_token(cluster: Cluster):
    before = len(cluster.finished())
    workers = cluster.workers()
    request = Requests(cluster.url, 1)
    assert request.has_begun.wait(120)
    with standing_still(workers):
        # What is under way arrives, and the rest has not been computed yet.
        time.sleep(1)
        assert 0 < request.num_events < NUM_TOKENS
    assert request.num_whole() == 1
    assert request.num_events == NUM_TOKENS
    assert eventually(lambda: len(cluster.finished()) == before + 1)


def test_a_client_that_leaves_ends_its_request(cluster: Cluster):
    request = body("The miller counts", stream=True, max_new_tokens=NUM_TOKENS)
    with standing_still(cluster.workers()), pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{cluster.url}/generate", json=request, timeout=httpx2.Timeout(60, read=5))
    assert eventually(lambda: any(fields.get("client_gone") for _, fields in cluster.finished()), 60)


def test_requests_are_shared_by_the_replicas(cluster: Cluster):
    before = len(cluster.finished())
    with standing_still(cluster.workers()):
        requests = Requests(cluster.url, 4)
        time.sleep(2)
    assert requests.num_whole() == 4
    assert eventually(lambda: len(cluster.finished()) == before + 4)
    assert len({pid for pid, _ in cluster.finished()[before:]}) == 2


def test_refusals_are_the_servers_own(cluster: Cluster):
    before = len(cluster.finished())
    answer = httpx2.post(f"{cluster.url}/generate", json={"inputs": "a", "model": "nobody"}, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert eventually(lambda: len(cluster.finished()) == before + 1)


def test_streams_outlive_their_workers(cluster: Cluster):
    before = len(cluster.finished())
    workers = cluster.workers()
    requests = Requests(cluster.url, 2)
    assert requests.has_begun.wait(120)
    for worker in workers:
        worker.kill()
    assert requests.num_whole() == 2
    assert requests.num_events == 2 * NUM_TOKENS
    assert eventually(lambda: len(cluster.workers()) == 2, 60)
    assert eventually(lambda: len(cluster.finished()) == before + 2)


def test_a_killed_replica_takes_only_its_own_requests_with_it_and_another_takes_its_place(cluster: Cluster):
    before = len(cluster.finished())
    killed, other = cluster.replicas()
    with standing_still(cluster.workers()):
        requests = Requests(cluster.url, 6)
        time.sleep(5)
        killed.process.kill()
    num_whole = requests.num_whole()
    assert 0 < num_whole < 6
    assert eventually(lambda: [pid for pid, _ in cluster.finished()[before:]] == [other.process.pid] * num_whole)
    assert Requests(cluster.url, 8, num_tokens=8).num_whole() == 8
    assert eventually(lambda: len(cluster.replicas()) == 2, 300)


def test_more_requests_than_the_replicas_are_meant_for_bring_another(cluster: Cluster):
    with standing_still(cluster.workers()):
        requests = Requests(cluster.url, 16)
        assert eventually(lambda: len(cluster.replicas()) == 3, 300)
    assert requests.num_whole() == 16
