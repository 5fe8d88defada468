"""What a step's tokens say to the front. Decides nothing."""

from __future__ import annotations

from typing import Any

from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.protocol import FinishReason, Tokens


def of_sequence(group: SequenceGroup, sequence: Sequence, finish_reason: FinishReason | None) -> Tokens | None:
    """The sequence's tokens that were not sent and will not be taken back; None where there is nothing to say."""
    start, stop = sequence.num_sent, sequence.num_output_tokens
    num_rewinds = sequence.num_rewinds
    if sequence.watch is not None and finish_reason is None:
        stop -= sequence.watch.num_held
        if stop <= start:
            return None
        # A place that is not sent is chosen again by whoever resumes, rewinds and all.
        num_rewinds = sequence.rewinds_before[stop - 1]
    sequence.num_sent = stop
    params = sequence.params
    first = sequence.num_prompt_tokens
    return Tokens(
        request_id=group.request_id,
        token_ids=sequence.token_ids[first + start : first + stop].tolist(),
        finish_reason=finish_reason,
        logprobs=sequence.logprobs[start:stop] if params.logprobs or params.top_n_tokens else None,
        index=sequence.sample_index,
        top_logprobs=sequence.top_logprobs[start:stop] if params.top_n_tokens else None,
        num_rewinds=num_rewinds,
        **_first(group, sequence.sample_index),
    )


def _first(group: SequenceGroup, index: int) -> dict[str, Any]:
    """What comes with a request's first tokens, and with those of its first output."""
    fields: dict[str, Any] = {}
    if not group.has_replied:
        group.has_replied = True
        fields["num_cached_tokens"] = group.num_cached_tokens
    if index == 0 and group.prompt_logprobs is not None:
        fields["prompt_logprobs"], group.prompt_logprobs = group.prompt_logprobs, None
    return fields
