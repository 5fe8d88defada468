"""HAProxy and nginx, with the files of deploy/, each before three real servers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.deploy.balancers import (
    BALANCERS,
    LONG,
    Balancer,
    Stream,
    addresses,
    free_port,
    haproxy,
    held_stream,
    loads,
    num_answered,
    resume_workers,
    settled,
    short_requests,
    suspend_workers,
    three_servers,
)
from tests.deploy.stubborn_replica import Way, stubborn_replica
from tests.server_process import ServerProcess
from tests.system.clients import body, eventually

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

Cluster = tuple[str, list[ServerProcess]]


@pytest.fixture(scope="module")
def servers(tiny_llama: Path) -> Iterator[list[ServerProcess]]:
    """Three that every test leaves running."""
    with three_servers(tiny_llama) as three:
        yield three


@pytest.fixture(scope="module", params=BALANCERS)
def balancer(request: pytest.FixtureRequest) -> Balancer:
    return BALANCERS[request.param]


@pytest.fixture(scope="module")
def cluster(
    balancer: Balancer, servers: list[ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A balancer's URL and the three servers behind it."""
    with balancer(addresses(servers), tmp_path_factory.mktemp("balancer")) as url:
        yield url, servers


@pytest.fixture
def mortal_cluster(balancer: Balancer, tiny_llama: Path, tmp_path: Path) -> Iterator[Cluster]:
    """One whose servers the test may stop."""
    with three_servers(tiny_llama) as servers, balancer(addresses(servers), tmp_path) as url:
        yield url, servers


def test_a_stream_passes_token_by_token(cluster: Cluster):
    url, servers = cluster
    try:
        stream = Stream(url, on_first_token=lambda: suspend_workers(servers))
        # The client has its first token, and one server still owes it the others.
        assert sorted(loads(servers)) == [0, 0, 1]
    finally:
        resume_workers(servers)
    outcome = stream.finish()
    assert outcome.is_whole
    assert len(outcome.token_ids) == 450


def test_requests_that_run_at_once_are_spread_over_the_replicas(cluster: Cluster):
    url, servers = cluster
    before = settled(*servers)
    assert all(outcome.is_whole for outcome in short_requests(url, 30))
    after = settled(*servers)
    assert all(after[server] > before[server] for server in before)


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole answer"])
def test_a_client_that_leaves_frees_its_place_behind_the_proxy(cluster: Cluster, is_stream: bool):
    url, servers = cluster
    settled(*servers)

    def num_gone() -> float:
        return sum(server.metric("sluice_client_disconnects_total") for server in servers)

    before = num_gone()
    request = body("The miller counts", stream=is_stream, max_new_tokens=450)
    with suppress(httpx2.ReadTimeout), httpx2.stream("POST", f"{url}/generate", json=request, timeout=0.2) as response:
        next(response.iter_lines())
    assert eventually(lambda: num_gone() == before + 1)
    assert loads(servers) == [0, 0, 0]


def test_a_body_of_40_kb_that_one_replica_refuses_is_answered_by_another(
    balancer: Balancer, servers: list[ServerProcess], tmp_path: Path
):
    with (
        stubborn_replica("refuses") as refusing,
        balancer([refusing.address, *addresses(servers[:2])], tmp_path) as url,
    ):
        assert all(outcome.is_whole for outcome in short_requests(url, 12, LONG))
        assert refusing.bodies
        for sent in refusing.bodies:
            assert json.loads(sent)["inputs"].startswith(LONG)
            assert len(sent) > 40_000


@pytest.mark.parametrize(("way", "status", "code"), [("fails", 500, "internal"), ("hangs up", 502, "replica_lost")])
def test_a_request_that_a_replica_has_begun_visits_no_other(
    balancer: Balancer, servers: list[ServerProcess], tmp_path: Path, way: Way, status: int, code: str
):
    before = sum(settled(*servers).values())
    with stubborn_replica(way) as ending, balancer([ending.address, *addresses(servers[:2])], tmp_path) as url:
        outcomes = short_requests(url, 12)
        lost = [outcome for outcome in outcomes if not outcome.is_whole]
        assert 1 <= len(lost) == len(ending.bodies)
        assert {(outcome.status, outcome.error_code) for outcome in lost} == {(status, code)}
        assert sum(settled(*servers).values()) == before + 12 - len(lost)


def test_a_draining_replica_finishes_its_stream_and_answers_no_new_request(mortal_cluster: Cluster):
    url, servers = mortal_cluster
    with held_stream(url, servers) as (stream, draining):
        draining.signal(signal.SIGTERM)
        assert eventually(lambda: draining.get("/readyz")[0] == 503)
        assert all(outcome.is_whole for outcome in short_requests(url, 24))
    assert stream.finish().is_whole
    assert draining.wait() == 0
    assert num_answered(draining) == 1


def test_haproxy_takes_a_draining_replica_out_before_it_has_to_refuse(tiny_llama: Path, tmp_path: Path):
    with three_servers(tiny_llama, "--drain-delay-s", "6") as servers, haproxy(addresses(servers), tmp_path) as url:
        draining = servers[0]
        draining.signal(signal.SIGTERM)
        assert eventually(lambda: "replica-1 is DOWN" in (tmp_path / "haproxy.log").read_text(), within_s=5)
        assert all(outcome.is_whole for outcome in short_requests(url, 24))
        # It would still have taken them.
        assert draining.get("/livez")[0] == 200
        assert draining.metric("sluice_rejections_total", reason="draining") == 0
        assert draining.wait(30) == 0
        assert num_answered(draining) == 0


def test_a_killed_replica_costs_no_request_that_it_had_not_begun(mortal_cluster: Cluster):
    url, servers = mortal_cluster
    streams = [Stream(url) for _ in range(3)]
    killed = [server for server, load in zip(servers, loads(servers), strict=True) if load][-1]
    killed.process.kill()
    killed.wait()
    assert all(outcome.is_whole for outcome in short_requests(url, 24))
    assert all(outcome.is_whole for outcome in short_requests(url, 6, LONG))
    assert sum(stream.finish().is_whole for stream in streams) == 2


def test_without_a_replica_the_refusal_says_that_a_retry_may_help(mortal_cluster: Cluster):
    url, servers = mortal_cluster
    for server in servers:
        server.process.kill()
        server.wait()
    for refused in short_requests(url, 6):
        assert (refused.status, refused.error_code) == (503, "no_replica")
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("2", "true")


def test_a_request_that_one_replica_refuses_and_no_other_is_there_to_take_may_be_sent_again(
    balancer: Balancer, tmp_path: Path
):
    with (
        stubborn_replica("refuses") as refusing,
        balancer([refusing.address, f"127.0.0.1:{free_port()}"], tmp_path) as url,
    ):
        outcomes = short_requests(url, 6)
        assert {(outcome.status, outcome.error_code) for outcome in outcomes} <= {
            (503, "no_replica"),
            (503, "queue_full"),
        }
