"""Who computes how much in a step."""

from __future__ import annotations

from typing import Any

from server.engine.batch import Batch
from server.engine.block_manager import BlockManager
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.protocol import Generate, Output
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

    def add(self, name: str, num_prompt_tokens: int, max_new_tokens: int = 50, **params: Any) -> Sequence:
        return self.add_group(
            generate(name, [1] * num_prompt_tokens, max_new_tokens=max_new_tokens, **params)
        ).sequences[0]

    def add_group(self, command: Generate) -> SequenceGroup:
        group = SequenceGroup(command, max_model_len=200, block_size=SIZE, order=self.num_arrivals)
        self.num_arrivals += 1
        self.scheduler.add(group)
        return group

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        self.scheduler.computed(batch)
        for sequence, _, group, *_ in batch.shares:
            if sequence.num_new_tokens == 0 and sequence in group.sequences:
                sequence.append(7)
        self.scheduler.check()
        return batch

    def shares(self) -> dict[str, int]:
        return {sequence.request_id: num_new for sequence, num_new, *_ in self.step().shares}


def test_sequences_that_lack_one_token_come_before_the_rest_of_an_older_prompt():
    line = Line()
    line.add("short", 3)
    line.add("long", 30)
    line.add("late", 40)
    assert line.shares() == {"short": 3, "long": 7}
    assert list(line.shares().items()) == [("short", 1), ("long", 9)]
    line.shares()
    assert line.shares() == {"short": 1, "long": 5, "late": 4}
    assert line.shares() == {"short": 1, "long": 1, "late": 8}


def test_a_short_prompt_does_not_wait_for_the_rest_of_a_long_one():
    line = Line()
    line.add("long", 60)
    line.shares()
    line.add("short", 4)
    assert line.shares() == {"long": 6, "short": 4}


def test_a_long_prompt_has_half_of_every_step_however_many_short_ones_come():
    line = Line(max_running=50)
    line.add("long", 60)
    line.shares()
    for i in range(10):
        line.add(f"short {i}", 4, max_new_tokens=1)
    for _ in range(4):
        batch = line.step()
        prompt_tokens = {s.request_id: n for s, n, *_ in batch.shares if n > 1}
        assert prompt_tokens["long"] >= 2
    assert line.scheduler.num_waiting < 10


def test_prompts_of_one_length_are_computed_one_after_the_other():
    line = Line()
    line.add("first", 25)
    line.add("second", 25)
    assert line.shares() == {"first": 10}
    assert line.shares() == {"first": 10}
    assert line.shares() == {"first": 5, "second": 5}


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


def rows(line: Line) -> list[tuple[int, int]]:
    """Each share's sample and tokens; a shadow's sample is negative."""
    return [
        (row.sample_index if row in group.sequences else ~row.sample_index, num_new)
        for row, num_new, group, *_ in line.step().shares
    ]


def resumed(outputs: list[list[int]], num_prompt_tokens: int = 6, **params: Any) -> Generate:
    command = generate("r", [1] * num_prompt_tokens, num_return_sequences=len(outputs), **params)
    return Generate("r", command.prompt_ids, command.params, [Output(output) for output in outputs])


def test_rows_of_a_resumed_group_follow_when_the_first_has_computed_what_all_begin_with():
    line = Line(max_batch_tokens=5)
    group = line.add_group(resumed([[2, 3, 4, 5], [2, 3, 9], [2, 3, 4]]))
    assert rows(line) == [(0, 5)]
    assert rows(line) == [(0, 3)]
    assert [row.num_computed_tokens for row in group.rows] == [8]
    # The last of the trunk's two blocks is full: nobody's next token lies in it.
    assert rows(line) == [(1, 1), (2, 1), (0, 2)]
    assert rows(line) == [(0, 1), (1, 1), (2, 1)]
    tables = [row.block_table[: row.num_blocks].tolist() for row in group.rows]
    assert len({tuple(table[:2]) for table in tables}) == 1
    assert len({table[2] for table in tables}) == 3


def test_a_guided_row_and_its_shadow_compute_their_last_tokens_in_one_step():
    line = Line(max_batch_tokens=6)
    line.add_group(Generate("r", [1] * 10, generate("r", [1], guidance_scale=2.0).params, negative_prompt_ids=[2] * 4))
    assert rows(line) == [(0, 6)]
    assert rows(line) == [(0, 3), (~0, 3)]
    assert rows(line) == [(0, 1), (~0, 1)]
    assert rows(line) == [(0, 1), (~0, 1)]


def test_rows_that_must_go_together_wait_for_a_step_with_room_for_all():
    line = Line(max_batch_tokens=3, max_running=4)
    line.add_group(Generate("r", [1], generate("r", [1], guidance_scale=2.0).params, negative_prompt_ids=[2]))
    line.add("a", 1)
    line.add("b", 1)
    for _ in range(4):
        assert rows(line) == [(0, 1), (~0, 1), (0, 1)]


def test_a_group_reserves_the_rows_it_will_come_to():
    line = Line(max_running=4)
    line.add("group", 3, num_return_sequences=3)
    line.add("other", 2, num_return_sequences=2)
    assert line.shares() == {"group": 3}
    assert line.scheduler.num_waiting == 1
    line.scheduler.abort("group")
    assert line.shares() == {"other": 2}


def test_reproducing_keeps_forks_and_gives_back():
    line = Line()
    root = line.add("beams", 6, num_beams=3)
    line.scheduler.computed(line.scheduler.schedule())
    group = next(iter(line.scheduler._running.values()))
    first = line.scheduler.reproduce(group, [0, 0, 0])
    assert first[0] is root
    line.scheduler.check()
    second = line.scheduler.reproduce(group, [2, 2, 1])
    assert (second[0], second[2]) == (first[2], first[1])
    assert (root.key, root.num_blocks) == (None, 0)
    assert line.released == [0]
    line.scheduler.check()
    line.scheduler.finish(group)
    assert line.scheduler.blocks.num_used == 0
