"""Who computes how much in a step."""

from __future__ import annotations

from server.engine.block_manager import BlockManager
from server.engine.scheduler import Batch, Scheduler
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from tests.engine.driving import generate

SIZE = 4


class Line:
    """A scheduler and sequences that each get token 7 when their known tokens are computed."""

    def __init__(self, num_blocks: int = 64, max_batch_tokens: int = 10, max_running: int = 4) -> None:
        self.released: list[int] = []
        self.scheduler = Scheduler(
            BlockManager(num_blocks, SIZE, prefix_cache=False),
            self,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
        )
        self.num_arrivals = 0

    def release(self, key: int) -> None:
        self.released.append(key)

    def fork(self, parent_key: int, child_key: int) -> None:
        pass

    def rewind(self, key: int, num_tokens: int) -> int:
        return num_tokens

    def add(self, name: str, num_prompt_tokens: int, max_new_tokens: int = 50) -> Sequence:
        command = generate(name, [1] * num_prompt_tokens, max_new_tokens=max_new_tokens)
        group = SequenceGroup(command, max_model_len=200, block_size=SIZE, order=self.num_arrivals)
        self.num_arrivals += 1
        self.scheduler.add(group)
        return group.sequences[0]

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        self.scheduler.computed(batch)
        for sequence, _, _ in batch.shares:
            if sequence.num_new_tokens == 0:
                sequence.append(7)
        self.scheduler.check()
        return batch

    def shares(self) -> dict[str, int]:
        return {sequence.request_id: num_new for sequence, num_new, _ in self.step().shares}


def test_sequences_that_lack_one_token_come_before_the_rest_of_an_older_prompt():
    line = Line()
    line.add("short", 3)
    line.add("long", 30)
    line.add("late", 2)
    assert line.shares() == {"short": 3, "long": 7}
    assert list(line.shares().items()) == [("short", 1), ("long", 9)]
    line.shares()
    assert line.shares() == {"short": 1, "long": 5, "late": 2}
    assert line.shares() == {"short": 1, "long": 1, "late": 1}


def test_no_more_than_max_running_sequences_are_in_a_step():
    line = Line(max_running=2)
    for name in "abc":
        line.add(name, 2)
    assert line.shares() == {"a": 2, "b": 2}
    line.scheduler.abort("a")
    assert line.shares() == {"b": 1, "c": 2}
    assert line.released == [0]


def test_nobody_is_admitted_past_a_head_of_the_queue_that_must_wait():
    line = Line(num_blocks=6, max_batch_tokens=40)
    line.add("a", 16, max_new_tokens=5)
    line.add("big", 12, max_new_tokens=5)
    line.add("small", 1, max_new_tokens=5)
    assert line.shares() == {"a": 16}
    assert line.scheduler.num_waiting == 2


def test_the_newest_sequence_is_preempted_and_returns_first():
    line = Line(num_blocks=5, max_batch_tokens=40)
    old = line.add("old", 7, max_new_tokens=12)
    new = line.add("new", 7, max_new_tokens=12)
    waiting = line.add("waiting", 20)
    num_preemptions = 0
    while num_preemptions == 0:
        num_preemptions = line.step().num_preemptions
    assert (old.key, new.key, waiting.key) == (0, None, None)
    assert new.num_computed_tokens == 0
    assert new.num_output_tokens > 0
    line.scheduler.abort("old")
    assert [share.sequence for share in line.step().shares] == [new]
    assert new.key == 2


def test_a_newcomer_leaves_room_for_the_running_to_grow():
    line = Line(num_blocks=4, max_batch_tokens=40)
    line.add("a", 4)
    assert line.shares() == {"a": 4}
    line.add("b", 12)
    assert line.shares() == {"a": 1}
    assert line.step().num_preemptions == 0


def test_aborting_a_waiting_sequence_leaves_the_others_in_order():
    line = Line(max_running=1)
    for name in "abcd":
        line.add(name, 2)
    line.step()
    line.scheduler.abort("c")
    line.scheduler.abort("a")
    assert line.shares() == {"b": 2}
    line.scheduler.abort("b")
    assert line.shares() == {"d": 2}
