"""Which rows compute how many tokens in a step. Knows no tensors and no tokens' meaning.

There are no phases: every row has known tokens and wants those computed that are not. A step spends its token
budget first on rows that lack one token, then on longer remainders in chunks, then on waiting groups, each in
order. Of a long remainder at their head, half the budget is kept for shorter ones. `Pacing` bounds what running
streams lose to the others. `Waiting` says whose turn it is.

A group's first row gets the blocks of all its known tokens when it is admitted, so that only growth by a chosen
token, and forks, can find the cache full; then the newest running group gives its blocks back and waits, with its
tokens kept, before its caller's others. The oldest always runs on, and each fits alone, so there is no livelock.
A caller with far fewer rows than another gets room from it in the same way, and `GivingWay` lets its prompts go first.

A group is admitted, preempted and finished as one entry of these queues.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import inf

from server.engine import invariants
from server.engine.batch import Batch, Share, share_of
from server.engine.block_manager import BlockManager
from server.engine.chunking import Chunking, FreeChunks
from server.engine.context import Context
from server.engine.encoding import WHOLE, EncoderPasses
from server.engine.giving_way import NOTHING, SHARED_STEP_S, GivingWay, Held, displaced
from server.engine.holdings import Holdings, RowStates
from server.engine.lengths import LengthRule
from server.engine.pacing import Pacing
from server.engine.prompt_lookup import Drafter
from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.engine.source_parts import SourceParts
from server.engine.waiting import Waiting
from server.token_budget import TokenBudget


class Scheduler:
    """The only one who moves groups between waiting, running and finished, and who makes their rows."""

    def __init__(
        self,
        blocks: BlockManager,
        states: RowStates,
        *,
        max_batch_tokens: int,
        max_running: int,
        chunking: Chunking | None = None,
        pacing: Pacing | None = None,
        drafter: Drafter | None = None,
        rule: LengthRule | None = None,
        token_budget: TokenBudget | None = None,
        passes: EncoderPasses = WHOLE,
    ) -> None:
        """``passes`` are those of an encoder-decoder's encoder.

        Without ``pacing`` and ``token_budget`` a step computes as much of prompts as ``max_batch_tokens`` allows.

        With ``rule``, a row that grows to a length with other rotary factors is computed again from its beginning.
        """
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        """`Relief` lowers it for a while when memory has run out."""
        self.max_running = max_running
        """Most rows."""
        self._holdings = Holdings(blocks, states, rule)
        self._chunking = chunking or FreeChunks()
        self._pacing = pacing
        self._drafter = drafter
        self._rule = rule
        self._token_budget = token_budget
        self.sources = SourceParts(passes, pacing)
        self._waiting = Waiting()
        self._giving_way = GivingWay()
        self._running: OrderedDict[str, SequenceGroup] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def _num_rows(self) -> int:
        return sum(group.num_rows for group in self._running.values())

    def __contains__(self, request_id: str) -> bool:
        return self.find(request_id) is not None

    def find(self, request_id: str) -> SequenceGroup | None:
        """A group that waits or runs."""
        return self._running.get(request_id) or self._waiting.get(request_id)

    @property
    def contexts(self) -> list[Context]:
        """Of all groups."""
        groups = (*self._running.values(), *self._waiting)
        return [group.sequences[0].context for group in groups if group.sequences]

    def fits_alone(self, group: SequenceGroup) -> bool:
        """Whether the empty cache could hold the group's longest outputs."""
        return self._holdings.most_blocks(group) <= self.blocks.num_blocks

    def add(self, group: SequenceGroup) -> None:
        self._waiting.add(group)

    def abort(self, request_id: str) -> None:
        """Forget a group; an unknown id is no error."""
        if not self._waiting.remove(request_id) and request_id in self._running:
            self.finish(self._running[request_id])

    def abort_sample(self, request_id: str, index: int) -> None:
        """Forget one sample of a group; an unknown one is no error."""
        group = self.find(request_id)
        sequence = None if group is None else group.sample(index)
        if group is None or sequence is None:
            return
        if len(group.sequences) == 1:
            self.abort(request_id)
        elif group.trunk is not None and sequence is group.sequences[0]:
            group.drops_leader = True  # not yet: the others wait for what it computes
        else:
            self._holdings.drop(group, sequence)

    def finish(self, group: SequenceGroup) -> None:
        """A running group gives its blocks back and is forgotten."""
        del self._running[group.request_id]
        self._waiting.end(group)
        self._holdings.give_all_back(group)

    def discard(self, group: SequenceGroup) -> list[int]:
        """Finish a group whose cache content is bad. Returns the blocks that nobody holds any more."""
        blocks = [block for row in group.rows for block in self.blocks.discard(row)]
        if group.source is not None:
            blocks += self.blocks.discard_source(group.source)
        self.finish(group)
        return blocks

    def end(self, group: SequenceGroup, sequence: Sequence) -> None:
        """One output of a running group is complete; with its last the group is finished."""
        if len(group.sequences) == 1:
            self.finish(group)
            return
        self._holdings.drop(group, sequence)

    def reproduce(self, group: SequenceGroup, parents: list[int]) -> list[Sequence]:
        """The rows of a beam search become those that were chosen: see `Holdings.reproduce`."""
        return self._holdings.reproduce(group, parents)

    def rewind(self, sequence: Sequence) -> None:
        """The sequence went back to fewer tokens, the last of which is computed again: it chooses the next."""
        for row in sequence.rows:
            self._holdings.rewind(row, self._chunking.restart(row))

    def schedule(self) -> Batch:
        """Choose the next step's work and give it blocks."""
        batch = Batch()
        has_callers = self._waiting.num_callers > 1
        self._giving_way.note(self._waiting.num_callers)
        if has_callers:
            self._make_way(batch)
        for group in list(self._running.values()) if self._rule is not None else ():
            self._holdings.follow_lengths(group, self._chunking.shared)
        held = self._giving_way.choose(self._running.values(), self._guest()) if has_callers else NOTHING
        self._fill(batch, held)
        if not batch.has_work and held.callers:
            self._fill(batch, NOTHING)
        for share in batch.shares:
            self._waiting.charge(share.group.caller, share.num_new_tokens)
        for part in batch.source_shares:
            self._waiting.charge(part.group.caller, part.num_tokens)
        is_growth = 0 < len(batch.shares) == batch.num_growing and not batch.source_shares
        if self._drafter is not None and is_growth:
            drafts = self._drafter.drafts(batch.shares, self.max_batch_tokens - len(batch.shares))
            self._holdings.add_drafts(batch, drafts)
        return batch

    def _fill(self, batch: Batch, held: Held) -> None:
        """Spend the step's budget, or as much as the rows that it leaves out would have taken."""
        num_made_way = batch.num_preemptions
        budget, rest = self._schedule_growth(batch, held)
        batch.num_growing = len(batch.shares)
        # Of those that wait, only they count whom the running ones leave a place.
        num_waiting = len(rest) + min(len(self._waiting), self.max_running - len(self._running))
        if self._pacing is not None and batch.shares and num_waiting:
            budget = min(budget, self._pacing.num_prompt_tokens(batch.num_growing, num_waiting))
        if self._token_budget is not None:
            is_shared = self._giving_way.is_shared
            limit = self._token_budget.num_tokens_within(SHARED_STEP_S) if is_shared else self._token_budget.num_tokens
            budget = min(budget, limit)
        # One that was preempted meanwhile has no rows.
        rest = [group for group in rest if group.rows]
        may_admit = batch.num_preemptions == num_made_way
        budget -= self._share_with_shorter(batch, rest, budget, held, may_admit=may_admit)
        for group in rest:
            if budget <= 0:
                break
            budget -= self._share(batch, group, budget, least=2)
        if may_admit:
            self._admit(batch, budget, held)

    def computed(self, batch: Batch) -> None:
        """The batch's tokens are in the cache. Of rows with drafts, `keep` counts them."""
        for share in batch.shares:
            if share.draft_ids is None:
                share.sequence.num_computed_tokens += share.num_new_tokens

    def keep(self, sequence: Sequence) -> None:
        """A row with a draft took what came true of it. All but its last token is computed, the rest never was."""
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self._holdings.rewind(sequence, sequence.num_tokens - 1)
        self.blocks.publish(sequence)

    def check(self) -> None:
        """Raise if an invariant fails. For tests."""
        invariants.check(self._running.values(), list(self._waiting), self.blocks, self.max_running)

    def restart(self, groups: Iterable[SequenceGroup]) -> None:
        """Running groups compute all their tokens again, in their places of the queue."""
        for group in groups:
            if group.rows:
                self._holdings.restart(group, self._chunking.shared)

    def preempt_newest(self) -> int:
        """Put the newer half of the running groups back to waiting. Returns how many; the oldest stays."""
        victims = list(reversed(self._running.values()))[: len(self._running) // 2]
        for victim in victims:
            self._preempt(victim)
        return len(victims)

    def _schedule_growth(self, batch: Batch, held: Held) -> tuple[int, list[SequenceGroup]]:
        """Rows that lack one token. Returns the budget left, and the groups that may lack more."""
        budget = min(held.num_rows or self.max_batch_tokens, self.max_batch_tokens)
        rest: list[SequenceGroup] = []
        for group in list(self._running.values()):
            # A victim of this very loop holds nothing any more.
            if budget == 0 or not group.rows or group.caller in held.callers:
                continue
            if group.num_source_left:
                if self._make_room(group, batch):
                    rest.append(group)
            elif len(group.rows) == 1 and group.trunk is None and not group.is_joint:
                # The plain case of what comes below.
                row = group.rows[0]
                if self._make_room(group, batch):
                    if row.num_tokens - row.num_computed_tokens == 1:
                        batch.shares.append(Share(row, 1, group))
                        budget -= 1
                    else:
                        rest.append(group)
            elif group.trunk is not None and not self._holdings.spread(group):
                if self._make_room(group, batch):
                    rest.append(group)
            elif self._make_room(group, batch):
                lacking = [row for row in group.rows if row.num_new_tokens == 1]
                if len(lacking) < len(group.rows):
                    rest.append(group)
                if group.is_joint and not len(lacking) == len(group.rows) <= budget:
                    continue
                del lacking[budget:]
                batch.shares += [Share(row, 1, group) for row in lacking]
                budget -= len(lacking)
        return budget, rest

    def _make_room(self, group: SequenceGroup, batch: Batch) -> bool:
        """Give each row the blocks of its known tokens. False if the group was preempted for want of them."""
        for row in group.rows:
            while not (self.blocks.grow(row, row.num_tokens) if row.num_blocks else self.blocks.admit(row, 0)):
                victim = next(reversed(self._running.values()))
                self._preempt(victim)
                batch.num_preemptions += 1
                if victim is group:
                    return False
        return True

    def _share(self, batch: Batch, group: SequenceGroup, budget: int, *, least: int) -> int:
        """Let the rows that lack ``least`` tokens or more compute what the budget allows. Returns what it took.

        Of a source, as much is encoded as the budget allows. The first tokens that read it come with its last part.
        """
        left = budget
        if group.source is not None and not group.source.is_computed:
            left -= self.sources.add(batch, group, budget, self._running.values())
            part = batch.part_of(group.source)
            if part is None or not part.is_last:
                return budget - left
            least, left = 1, max(1, left)
        if group.trunk is not None:
            least = 1
        is_whole = False
        due = [(row, group.num_due_tokens(row)) for row in group.rows]
        due = [(row, num_tokens) for row, num_tokens in due if num_tokens >= least]
        if group.is_joint and group.trunk is None and due:
            due, is_whole = self._chunking.joint([(row, row.num_new_tokens) for row in group.rows], left)
        for row, num_tokens in due:
            if left > 0 or is_whole:
                num_new_tokens = self._chunking.size(row, num_tokens, left)
                batch.shares.append(share_of(row, num_new_tokens, group))
                left -= num_new_tokens
        return budget - left

    def _share_with_shorter(
        self, batch: Batch, rest: list[SequenceGroup], budget: int, held: Held, *, may_admit: bool
    ) -> int:
        """Half of the budget for those that lack less than the first, which is taken out. Returns what they took."""
        if not rest or budget < 2:
            return 0
        first, left = rest[0], budget // 2
        for group in sorted(rest[1:], key=lambda group: group.num_due):
            if left > 0 and group.num_due < first.num_due:
                left -= self._share(batch, group, left, least=2)
                rest.remove(group)
        if may_admit:
            left = self._admit(batch, left, held, below=first.num_due)
        return budget // 2 - left

    def _admit(self, batch: Batch, budget: int, held: Held, below: float = inf) -> int:
        """Let groups begin that lack fewer tokens than ``below``. Returns the budget left."""
        while budget > 0 and len(self._running) < self.max_running:
            group = self._waiting.next()
            if group is None or group.num_input_tokens >= below or group.caller in held.callers:
                break
            if self._num_rows + group.num_rows > self.max_running or not self._place(group):
                break
            self._waiting.begin(group)
            self._running[group.request_id] = group
            if group.num_cached_tokens is None:
                num_cached = min(group.sequences[0].num_computed_tokens, group.num_prompt_tokens)
                group.num_cached_tokens = max(0, num_cached - group.num_virtual)
                if group.source is not None and group.source.is_computed:
                    group.num_cached_tokens += len(group.source.ids)
                batch.started.append(group)
            budget -= self._share(batch, group, budget, least=1)
        return budget

    def _make_way(self, batch: Batch) -> None:
        """Preempt groups of the caller with the most rows for the one whose turn it is."""
        next_ = self._waiting.next()
        coming: list[SequenceGroup] = []
        for group in [] if next_ is None else self._waiting.of(next_.caller):
            coming.append(group)
            while not self._has_room(coming):
                if (victim := displaced(self._running.values(), coming)) is None:
                    return
                self._preempt(victim)
                batch.num_preemptions += 1

    def _guest(self) -> SequenceGroup | None:
        """The waiting group whose turn it is, if it can begin in this step."""
        group = self._waiting.next()
        return group if group is not None and self._has_room([group]) else None

    def _has_room(self, coming: list[SequenceGroup]) -> bool:
        num_rows = self._num_rows + sum(group.num_rows for group in coming)
        leaders = (row for group in coming for row in group.leaders)
        num_blocks = num_rows + sum(self.blocks.blocks_for(row.num_tokens) for row in leaders)
        num_blocks += sum(self.blocks.num_source_blocks(group.source) for group in coming)
        return num_rows <= self.max_running and num_blocks <= self.blocks.num_available

    def _place(self, group: SequenceGroup) -> bool:
        """Give the group's leaders blocks. False, and nothing changed, if there are not enough."""
        # A spare block for each row that runs, and those of rows to come, or someone would soon be preempted for them.
        num_spare = sum(
            other.num_rows + other.num_later_blocks(self.blocks.block_size) for other in self._running.values()
        )
        return self._holdings.place(group, self._chunking.shared, num_spare)

    def _preempt(self, group: SequenceGroup) -> None:
        # Before it ends, so that its caller keeps its share.
        self._waiting.add(group, comes_first=True)
        self.finish(group)
