"""A bounded queue: what it takes, what it refuses, and when it says to come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from server import caller
from server.availability_errors import Draining, QueueFull, RateLimited
from server.caller import Caller
from server.serving import admission
from server.serving.admission import Admission


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock.now_s)
    return clock


class Clock:
    now_s = 1000.0


def test_one_request_beyond_the_bound_is_refused_and_a_finished_one_makes_room():
    queue = Admission("tiny", max_requests=2, max_tokens=1000)
    with queue.admit(10):
        with queue.admit(10):
            with pytest.raises(QueueFull), queue.admit(10):
                pass
            with pytest.raises(QueueFull):
                queue.check()
        queue.check()
        with queue.admit(10):
            pass
    assert (queue.num_requests, queue.num_tokens) == (0, 0)


def test_tokens_are_bounded_too_and_several_inputs_count_as_several_requests():
    queue = Admission("tiny", max_requests=10, max_tokens=100)
    with queue.admit(60):
        with pytest.raises(QueueFull, match="60 of at most 100 tokens"), queue.admit(41):
            pass
        with pytest.raises(QueueFull, match="1 of at most 10 requests"), queue.admit(10, num_requests=10):
            pass
        with queue.admit(40, num_requests=9):
            assert queue.num_requests == 10


def test_an_empty_queue_takes_a_request_that_is_larger_than_it():
    queue = Admission("tiny", max_requests=10, max_tokens=100)
    with queue.admit(500), pytest.raises(QueueFull):
        queue.check()


def test_a_failed_request_gives_its_place_back():
    queue = Admission("tiny", max_requests=1, max_tokens=100)
    with pytest.raises(RuntimeError), queue.admit(10):
        raise RuntimeError
    queue.check()


def test_draining_refuses_all_new_work_and_lets_the_old_end():
    queue = Admission("tiny", max_requests=10, max_tokens=100)
    with queue.admit(10):
        queue.draining = True
        with pytest.raises(Draining) as refusal:
            queue.check()
        with pytest.raises(Draining), queue.admit(1):
            pass
        assert refusal.value.retry_after_s is not None
    assert queue.num_requests == 0


def test_the_time_to_come_back_follows_the_measured_rate(clock):
    """Work has ended at 100 tokens a second; 1000 tokens are in the queue: about 10 s."""
    queue = Admission("tiny", max_requests=10, max_tokens=1000)
    for _ in range(20):
        with queue.admit(100):
            clock.now_s += 1.0
    clock.now_s += 5.0
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(queue.admit(100))
        found = {queue.retry_after_s() for _ in range(200)}
    assert all(isinstance(seconds, int) for seconds in found)
    assert min(found) in (8, 9)
    assert max(found) in (11, 12)


def test_the_time_to_come_back_has_bounds(clock):
    queue = Admission("tiny", max_requests=1, max_tokens=1000)
    with queue.admit(10):
        assert queue.retry_after_s() == 1
        clock.now_s += 1000.0
        assert queue.retry_after_s() == 60


def as_caller(name: str) -> None:
    caller.set_current(Caller(name))


def fill(stack: ExitStack, queue: Admission, name: str, num_requests: int, num_tokens: int = 1) -> None:
    as_caller(name)
    for _ in range(num_requests):
        stack.enter_context(queue.admit(num_tokens))


@pytest.fixture(autouse=True)
def _nobody() -> Iterator[None]:
    yield
    caller.set_current(caller.NOBODY)


def test_one_caller_alone_may_fill_the_queue():
    queue = Admission("tiny", max_requests=8, max_tokens=1000)
    with ExitStack() as stack:
        fill(stack, queue, "flood", 8)
        with pytest.raises(QueueFull):
            queue.check()


def test_a_full_queue_still_takes_a_caller_below_its_share():
    queue = Admission("tiny", max_requests=8, max_tokens=1000)
    with ExitStack() as stack:
        fill(stack, queue, "flood", 8)
        fill(stack, queue, "other", 2)
        with pytest.raises(QueueFull):
            queue.check()
        as_caller("flood")
        with pytest.raises(RateLimited) as refused:
            queue.check()
        assert refused.value.retry_after_s is not None


def test_a_caller_above_its_share_gives_way_until_all_have_theirs():
    queue = Admission("tiny", max_requests=8, max_tokens=1000)
    with ExitStack() as others, ExitStack() as flood:
        fill(flood, queue, "flood", 8)
        fill(others, queue, "other", 2)
        flood.close()
        fill(others, queue, "other", 2)
        fill(flood, queue, "flood", 4)
        with pytest.raises(RateLimited):
            queue.check()
    assert (queue.num_requests, queue.num_tokens) == (0, 0)
    assert not queue._requests and not queue._tokens


def test_a_queue_full_of_tokens_still_takes_a_caller_below_its_share():
    queue = Admission("tiny", max_requests=100, max_tokens=1000)
    with ExitStack() as stack:
        fill(stack, queue, "flood", 2, num_tokens=500)
        fill(stack, queue, "other", 1, num_tokens=200)
        with pytest.raises(QueueFull):
            fill(stack, queue, "third", 1, num_tokens=200)
        with pytest.raises(RateLimited, match="1000 of your tokens"):
            fill(stack, queue, "flood", 1, num_tokens=1)
