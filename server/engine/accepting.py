"""The chosen tokens become outputs: what ends here, goes back to before a banned phrase, or makes a draft true."""

from __future__ import annotations

from server.engine import replies
from server.engine.batch import Batch, Share
from server.engine.choosing import Choices
from server.engine.prompt_lookup import Drafter
from server.engine.sampler import Sampled
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.protocol import FinishReason, Tokens


class Acceptor:
    """Holds no state of its own. Beams are not its concern."""

    def __init__(self, scheduler: Scheduler, drafter: Drafter | None = None) -> None:
        self._scheduler = scheduler
        self._drafter = drafter

    def accept(self, choices: Choices, batch: Batch) -> list[Tokens]:
        """Take the tokens, end the sequences that end here, and tell what is new."""
        answers: list[Tokens] = []
        sampled = choices.sampled
        if sampled is None:
            return answers
        row = 0
        while row < len(choices.sequences):
            group, sequence = choices.groups[row], choices.sequences[row]
            finish_reason: FinishReason | None = None
            if choices.drafts and (share := choices.drafts.get(row)) is not None:
                num_accepted, finish_reason = self._take_draft(share, sampled, row)
                batch.num_accepted += num_accepted
                row += 1 + share.num_drafted
            else:
                row += 1
                if sequence.num_new_tokens:
                    continue
                finish_reason = self._take(sequence, sampled, row - 1)
            if finish_reason is not None:
                self._scheduler.end(group, sequence)
            if (reply := replies.of_sequence(group, sequence, finish_reason)) is not None:
                answers.append(reply)
        return answers

    def _take(self, sequence: Sequence, sampled: Sampled, i: int) -> FinishReason | None:
        """The sequence goes on with choice ``i``. Why it ends, if it does."""
        if not sampled.is_finite[i]:
            return "banned_phrase"  # the only cause that does not fail the request
        token_id = sampled.token_ids[i]
        sequence.append(token_id)
        if sequence.tells_logprobs:
            sequence.logprobs.append(sampled.logprobs[i])
        if sequence.tells_others:
            sequence.top_logprobs.append(sampled.top_logprobs[i])
        return self._watch(sequence) if sequence.watch is not None else sequence.finish_reason_after(token_id)

    def _take_draft(self, share: Share, sampled: Sampled, first: int) -> tuple[int, FinishReason | None]:
        """The sequence goes on with the choices at its draft's places, up to the first that differs from the draft.

        Choice ``first`` and those after it are its own. Returns how many drafted tokens came true, and why it ends.
        """
        sequence, draft_ids = share.sequence, share.draft_ids
        assert draft_ids is not None
        assert self._drafter is not None
        num_accepted = 0
        finish_reason: FinishReason | None = None
        for i in range(len(draft_ids) + 1):
            if not sampled.is_finite[first + i]:
                # The draft may be the cause. If not, the next step finds the same without one.
                self._drafter.turn_off(sequence)
                break
            finish_reason = self._take(sequence, sampled, first + i)
            is_true = i < len(draft_ids) and bool(sampled.token_ids[first + i] == draft_ids[i])
            num_accepted += is_true
            if finish_reason is not None or not is_true:
                break
        self._drafter.learn(sequence, len(draft_ids), num_accepted)
        self._scheduler.keep(sequence)
        return num_accepted, finish_reason

    def _watch(self, sequence: Sequence) -> FinishReason | None:
        """Go back to before a banned phrase if the last token completed one. Why the sequence ends, if it does."""
        assert sequence.watch is not None
        sequence.rewinds_before.append(sequence.num_rewinds)
        last = sequence.num_tokens - 1
        place = sequence.watch.push(int(sequence.token_ids[last]))
        if place is None:
            return sequence.finish_reason
        # A rewind may bring back a phrase's beginning that had been harmless, and sent: then its next token has to go.
        place = max(place, sequence.num_sent)
        banned = sequence.banned_at.setdefault(place, set())
        banned.add(int(sequence.token_ids[sequence.num_prompt_tokens + place]))
        sequence.num_rewinds += 1
        sequence.truncate(place)
        if sequence.num_rewinds > sequence.params.max_rewinds:
            return "banned_phrase"
        self._scheduler.rewind(sequence)
        return None
