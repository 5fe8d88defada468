"""deploy/haproxy.cfg with a real HAProxy before two real servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import TINY_SETTINGS
from tests.deploy.balancers import (
    Stream,
    addresses,
    haproxy,
    held_stream,
    loads,
    num_answered,
    program,
    resume_workers,
    settled,
    short_requests,
    suspend_workers,
)
from tests.server_process import ServerProcess, running_server
from tests.system.clients import eventually

pytestmark = [
    pytest.mark.timeout(240),
    # In continuous integration a missing HAProxy fails: TEST_HAPROXY=required.
    pytest.mark.skipif(
        program("haproxy") is None and os.environ.get("TEST_HAPROXY") != "required",
        reason="haproxy is not installed (apt-get install haproxy)",
    ),
]


@pytest.fixture(scope="module")
def replicas(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    """The balancer's URL and the two servers behind it, until the test that drains one."""
    with _replicas(tiny_llama, tmp_path_factory.mktemp("haproxy")) as pair:
        yield pair


@pytest.fixture
def mortal_replicas(tiny_llama: Path, tmp_path: Path) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    """A pair for one test alone."""
    with _replicas(tiny_llama, tmp_path) as pair:
        yield pair


@contextmanager
def _replicas(tiny_llama: Path, folder: Path) -> Iterator[tuple[str, ServerProcess, ServerProcess]]:
    with ExitStack() as stack:
        flags = ("--model", f"chat={tiny_llama}", *TINY_SETTINGS)
        first, second = (stack.enter_context(running_server(*flags)) for _ in range(2))
        url = stack.enter_context(haproxy(addresses([first, second]), folder))
        yield url, first, second


def test_a_stream_passes_token_by_token(replicas):
    url, first, second = replicas
    try:
        stream = Stream(url, on_first_token=lambda: suspend_workers([first, second]))
        # The client has its first token, and one server still owes it the others.
        assert sorted(loads([first, second])) == [0, 1]
    finally:
        resume_workers([first, second])
    outcome = stream.finish()
    assert outcome.is_whole and len(outcome.token_ids) == 450


def test_requests_go_to_the_replica_with_fewer_of_them(replicas):
    url, first, second = replicas
    before = settled(first, second)
    with held_stream(url, (first, second)) as (stream, busy):
        idle = second if busy is first else first
        for _ in range(3):
            assert short_requests(url, 1)[0].is_whole
        assert eventually(lambda: num_answered(idle) == before[idle.url] + 3)
    assert stream.finish().is_whole


def test_metrics_of_several_replicas_are_not_mixed(replicas):
    url, *_ = replicas
    assert httpx2.get(f"{url}/metrics").status_code == 404


def test_a_draining_replica_finishes_its_stream_and_its_new_requests_are_answered_by_the_other(replicas):
    url, first, second = replicas
    before = settled(first, second)
    with held_stream(url, (first, second)) as (stream, draining):
        draining.signal(signal.SIGTERM)
        assert eventually(lambda: draining.get("/readyz")[0] == 503)
        assert all(outcome.is_whole for outcome in short_requests(url, 16))
    other = second if draining is first else first
    assert stream.finish().is_whole
    assert draining.wait() == 0
    assert eventually(lambda: num_answered(other) == before[other.url] + 16)
    assert num_answered(draining) == before[draining.url] + 1


def test_requests_that_a_killed_replica_never_began_go_to_the_other(mortal_replicas):
    url, killed, other = mortal_replicas
    assert all(outcome.is_whole for outcome in short_requests(url, 4))
    before = settled(killed, other)[other.url]
    killed.process.kill()
    killed.process.wait(10)
    outcomes = short_requests(url, 16)
    assert all(outcome.is_whole for outcome in outcomes)
    assert eventually(lambda: num_answered(other) == before + 16)

    other.process.kill()
    other.process.wait(10)
    [refused] = short_requests(url, 1)
    assert (refused.status, refused.error_code, refused.headers["retry-after"]) == (503, "no_replica", "2")
