"""What a step's tokens say to the front. Decides nothing."""

from __future__ import annotations

from server.engine.sequence import Sequence
from server.engine.sequence_group import SequenceGroup
from server.protocol import FinishReason, PromptLogprobs, TokenLogprob, Tokens


def of_sequence(group: SequenceGroup, sequence: Sequence, finish_reason: FinishReason | None) -> Tokens | None:
    """The sequence's tokens that were not sent and will not be taken back; None where there is nothing to say."""
    start, stop = sequence.num_sent, sequence.num_output_tokens
    num_rewinds = sequence.num_rewinds
    if finish_reason is None:
        stop -= 0 if sequence.watch is None else sequence.watch.num_held
        if stop <= start:
            return None
    if sequence.watch is not None and finish_reason is None:
        # A place that is not sent is chosen again by whoever resumes, rewinds and all.
        num_rewinds = sequence.rewinds_before[stop - 1]
    sequence.num_sent = stop
    first = sequence.num_prompt_tokens
    return Tokens(
        request_id=group.request_id,
        token_ids=sequence.token_ids[first + start : first + stop].tolist(),
        finish_reason=finish_reason,
        logprobs=sequence.logprobs[start:stop] if sequence.tells_logprobs else None,
        num_cached_tokens=None if group.has_replied else _num_cached_tokens(group),
        index=sequence.sample_index,
        top_logprobs=sequence.top_logprobs[start:stop] if sequence.tells_others else None,
        prompt_logprobs=_prompt_logprobs(group, sequence.sample_index) if group.prompt_logprobs is not None else None,
        num_rewinds=num_rewinds,
    )


def of_agreed(group: SequenceGroup) -> list[Tokens]:
    """What has become certain in a beam search that goes on: the same for every answer."""
    assert group.search is not None
    agreed = group.search.agreed()
    if not agreed.token_ids:
        return []
    group.num_agreed += len(agreed.token_ids)
    return [
        _of_beam(group, index, agreed.token_ids, agreed.logprobs, agreed.top_logprobs)
        for index in range(group.params.num_return_sequences)
    ]


def of_results(group: SequenceGroup) -> list[Tokens]:
    """The rest of each answer of a beam search that is done, its score and its end."""
    assert group.search is not None
    start = group.num_agreed
    return [
        _of_beam(
            group,
            index,
            hypothesis.token_ids[start:].tolist(),
            hypothesis.logprobs[start:].tolist(),
            hypothesis.top_logprobs[start:],
            finish_reason=hypothesis.finish_reason,
            score=hypothesis.score,
        )
        for index, hypothesis in enumerate(group.search.results())
    ]


def of_time_out(group: SequenceGroup) -> list[Tokens]:
    """The rest of each output of a group whose time is over, of a beam search the best so far, and its end."""
    if group.search is not None:
        group.search.end_in_time()
        return of_results(group)
    told = (of_sequence(group, sequence, "max_time") for sequence in group.sequences)
    return [reply for reply in told if reply is not None]


def _of_beam(
    group: SequenceGroup,
    index: int,
    token_ids: list[int],
    logprobs: list[float],
    top_logprobs: list[list[TokenLogprob]],
    *,
    finish_reason: FinishReason | None = None,
    score: float | None = None,
) -> Tokens:
    params = group.params
    return Tokens(
        request_id=group.request_id,
        token_ids=token_ids,
        finish_reason=finish_reason,
        logprobs=logprobs if params.tells_logprobs else None,
        num_cached_tokens=_num_cached_tokens(group),
        index=index,
        top_logprobs=top_logprobs if params.tells_others else None,
        prompt_logprobs=_prompt_logprobs(group, index),
        score=score,
    )


def _num_cached_tokens(group: SequenceGroup) -> int | None:
    """They come with the group's first reply."""
    if group.has_replied:
        return None
    group.has_replied = True
    return group.num_cached_tokens


def _prompt_logprobs(group: SequenceGroup, index: int) -> PromptLogprobs | None:
    """They come with the first output's first tokens."""
    if index > 0:
        return None
    scores, group.prompt_logprobs = group.prompt_logprobs, None
    return scores
