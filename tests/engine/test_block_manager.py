"""Blocks: counts, hashes, reuse and eviction."""

from __future__ import annotations

import pytest

from server.engine.block_manager import BlockManager
from server.engine.context import Context
from server.engine.sequence import Sequence
from server.engine.sources import Source
from tests.engine.driving import generate

SIZE = 4


def sequence(token_ids: list[int], seed: bytes = b"") -> Sequence:
    made = Sequence(generate("r", token_ids, max_new_tokens=16), max_model_len=128, block_size=SIZE)
    made.context = Context(seed)
    return made


def computed(blocks: BlockManager, token_ids: list[int], seed: bytes = b"") -> Sequence:
    """A sequence that is admitted, computed and published."""
    made = sequence(token_ids, seed)
    assert blocks.admit(made, num_spare=0)
    made.num_computed_tokens = made.num_tokens
    blocks.publish(made)
    return made


def test_a_second_sequence_reuses_the_full_blocks_of_a_common_beginning():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    first = computed(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = sequence([1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    assert blocks.admit(second, num_spare=0)
    assert second.num_computed_tokens == 8
    assert second.block_table[:2].tolist() == first.block_table[:2].tolist()
    assert second.block_table[2] != first.block_table[2]
    blocks.check([first, second])


def test_the_last_known_token_is_always_left_to_compute():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    computed(blocks, [1, 2, 3, 4, 5, 6, 7, 8])
    again = sequence([1, 2, 3, 4, 5, 6, 7, 8])
    assert blocks.admit(again, num_spare=0)
    assert again.num_computed_tokens == 4


def test_a_block_is_no_prefix_hit_before_it_is_computed():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    scheduled = sequence([1, 2, 3, 4, 5])
    assert blocks.admit(scheduled, num_spare=0)
    blocks.publish(scheduled)
    early = sequence([1, 2, 3, 4, 5])
    assert blocks.admit(early, num_spare=0)
    assert early.num_computed_tokens == 0
    blocks.check([scheduled, early])


def test_equal_blocks_after_different_beginnings_are_not_mixed_up():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    computed(blocks, [1, 1, 1, 1, 5, 6, 7, 8, 9])
    other = sequence([2, 2, 2, 2, 5, 6, 7, 8, 9])
    assert blocks.admit(other, num_spare=0)
    assert other.num_computed_tokens == 0


def test_sequences_with_different_seeds_share_nothing():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    computed(blocks, [1, 2, 3, 4, 5], seed=b"adapter a")
    other = sequence([1, 2, 3, 4, 5], seed=b"adapter b")
    assert blocks.admit(other, num_spare=0)
    assert other.num_computed_tokens == 0


def test_freed_blocks_stay_addressable_until_they_are_needed():
    blocks = BlockManager(4, SIZE, prefix_cache=True)
    blocks.free(computed(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert blocks.num_available == 4
    again = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(again, num_spare=0)
    assert again.num_computed_tokens == 8
    blocks.free(again)
    blocks.free(computed(blocks, list(range(20, 36))))
    evicted = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(evicted, num_spare=0)
    assert evicted.num_computed_tokens == 0
    blocks.check([evicted])


def test_the_end_of_a_prompt_is_evicted_before_its_beginning():
    blocks = BlockManager(4, SIZE, prefix_cache=True)
    blocks.free(computed(blocks, list(range(1, 14))))
    blocks.free(computed(blocks, [50, 51, 52, 53, 54]))
    again = sequence(list(range(1, 14)))
    assert blocks.admit(again, num_spare=0)
    assert again.num_computed_tokens == 8


def test_a_refused_admission_changes_nothing():
    blocks = BlockManager(3, SIZE, prefix_cache=True)
    first = computed(blocks, [1, 2, 3, 4, 5])
    assert not blocks.admit(sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]), num_spare=0)
    assert not blocks.admit(sequence([9]), num_spare=1)
    blocks.check([first])


def test_idle_hits_count_as_blocks_that_are_taken():
    blocks = BlockManager(3, SIZE, prefix_cache=True)
    blocks.free(computed(blocks, [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    holder = sequence([40])
    assert blocks.admit(holder, num_spare=0)
    assert not blocks.admit(sequence([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]), num_spare=0)
    blocks.check([holder])


def test_discarded_blocks_are_never_a_prefix_hit_again():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    good = computed(blocks, [1, 2, 3, 4, 5])
    bad = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(bad, num_spare=0)
    bad.num_computed_tokens = 9
    blocks.publish(bad)
    shared = int(good.block_table[0])
    dropped = blocks.discard(bad)
    assert shared not in dropped
    assert len(dropped) == 2
    again = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(again, num_spare=0)
    assert again.num_computed_tokens == 0
    blocks.check([good, again])


def test_without_a_prefix_cache_nothing_is_hashed_or_reused():
    blocks = BlockManager(8, SIZE, prefix_cache=False)
    first = computed(blocks, [1, 2, 3, 4, 5])
    second = sequence([1, 2, 3, 4, 5])
    assert blocks.admit(second, num_spare=0)
    assert second.num_computed_tokens == 0
    assert first.block_hashes == []


@pytest.mark.parametrize("fault", ["leak", "double", "early"])
def test_check_finds_broken_invariants(fault):
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    held = computed(blocks, [1, 2, 3, 4, 5])
    blocks.check([held])
    if fault == "leak":
        held.num_blocks = 1
    elif fault == "double":
        held.block_table[1] = held.block_table[0]
    else:
        held.num_computed_tokens = 3
    with pytest.raises(AssertionError):
        blocks.check([held])


def forked(blocks: BlockManager, parent: Sequence, num_tokens: int) -> Sequence:
    child = parent.fork()
    blocks.fork(parent, child, num_tokens)
    return child


def written(blocks: BlockManager, row: Sequence, token_id: int) -> None:
    """The row takes a token and computes it."""
    row.append(token_id)
    assert blocks.grow(row, row.num_tokens)
    row.num_computed_tokens = row.num_tokens


def test_a_fork_holds_its_parents_blocks_and_takes_none():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    parent = computed(blocks, [1, 2, 3, 4, 5, 6])
    children = [forked(blocks, parent, 6) for _ in range(3)]
    assert blocks.num_used == 2
    assert all(child.block_table[:2].tolist() == parent.block_table[:2].tolist() for child in children)
    blocks.check([parent, *children])


def test_each_who_writes_into_a_shared_block_gets_a_copy_but_for_the_last():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    parent = computed(blocks, [1, 2, 3, 4, 5, 6])
    shared = int(parent.block_table[1])
    rows = [parent, *(forked(blocks, parent, 6) for _ in range(2))]
    for token_id, row in enumerate(rows, start=50):
        written(blocks, row, token_id)
    copies = blocks.take_copies()
    assert [source for source, _ in copies] == [shared, shared]
    assert sorted(destination for _, destination in copies) == sorted(int(row.block_table[1]) for row in rows[:2])
    assert rows[2].block_table[1] == shared
    assert len({int(row.block_table[0]) for row in rows}) == 1
    assert blocks.take_copies() == []
    assert blocks.num_used == 4
    blocks.check(rows)


def test_a_copy_for_which_there_is_no_block_changes_nothing():
    blocks = BlockManager(2, SIZE, prefix_cache=False)
    parent = computed(blocks, [1, 2, 3, 4, 5, 6])
    child = forked(blocks, parent, 6)
    child.append(9)
    assert not blocks.grow(child, 7)
    assert blocks.take_copies() == []
    blocks.check([parent, child])


def test_a_copy_into_a_block_that_was_given_back_is_not_made():
    blocks = BlockManager(3, SIZE, prefix_cache=False)
    parent = computed(blocks, [1, 2, 3, 4, 5, 6])
    child = forked(blocks, parent, 6)
    written(blocks, child, 9)
    blocks.free(child)
    newcomer = sequence([7])
    assert blocks.admit(newcomer, num_spare=0)
    assert blocks.take_copies() == []
    blocks.check([parent, newcomer])


def test_a_rewound_sequence_gives_back_what_it_no_longer_covers():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    row = computed(blocks, [1, 2, 3, 4, 5, 6])
    for token_id in range(7, 13):
        written(blocks, row, token_id)
    blocks.publish(row)
    assert blocks.num_used == 3
    row.truncate(1)
    blocks.rewind(row, row.num_tokens - 1)
    assert (row.num_computed_tokens, row.num_blocks, row.num_published_blocks) == (6, 2, 1)
    blocks.check([row])


def test_a_published_block_is_no_prefix_hit_once_its_owner_writes_into_it_again():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    row = computed(blocks, [1, 2, 3, 4, 5, 6])
    for token_id in (7, 8, 9):
        written(blocks, row, token_id)
    blocks.publish(row)
    row.truncate(1)
    blocks.rewind(row, row.num_tokens - 1)
    row.num_computed_tokens = 6
    row.token_ids[6] = 40
    assert blocks.grow(row, 7)
    other = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(other, num_spare=0)
    assert other.num_computed_tokens == 4
    blocks.check([row, other])


def test_a_published_block_that_others_hold_is_copied_before_it_is_written_again():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    row = computed(blocks, [1, 2, 3, 4, 5, 6])
    for token_id in (7, 8, 9):
        written(blocks, row, token_id)
    blocks.publish(row)
    other = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(other, num_spare=0)
    assert other.num_computed_tokens == 8
    row.truncate(1)
    blocks.rewind(row, row.num_tokens - 1)
    assert blocks.grow(row, 7)
    assert blocks.take_copies() == [(int(other.block_table[1]), int(row.block_table[1]))]
    row.num_computed_tokens = 7
    row.token_ids[6] = 40
    blocks.check([row, other])


def test_check_finds_a_block_that_rows_with_different_tokens_share():
    blocks = BlockManager(8, SIZE, prefix_cache=True)
    parent = computed(blocks, [1, 2, 3, 4, 5, 6])
    child = forked(blocks, parent, 6)
    for token_id, row in ((50, parent), (51, child)):
        row.append(token_id)
        row.num_computed_tokens = row.num_tokens
    with pytest.raises(AssertionError, match="different tokens"):
        blocks.check([parent, child])


def test_a_discarded_source_is_encoded_again_for_others_that_read_it() -> None:
    blocks = BlockManager(8, SIZE, prefix_cache=False, keeps_sources=True)
    bad, other = Source([1, 2, 3]), Source([1, 2, 3])
    assert blocks.hold_source(bad, 0) and blocks.hold_source(other, 0)
    assert bad.held is other.held
    bad.held.is_computed = True
    assert blocks.discard_source(bad) == []
    assert not other.is_computed
    later = Source([1, 2, 3])
    assert blocks.hold_source(later, 0)
    assert later.held is not other.held
