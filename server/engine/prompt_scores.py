"""Log-probabilities of a prompt's own tokens, from the logits of its chunks.

Dimension key
    T  tokens of a chunk
    V  vocabulary size
"""

from __future__ import annotations

import torch
from torch import Tensor

from server.engine.sequence_group import SequenceGroup
from server.protocol import PromptLogprobs, TokenLogprob


def take(group: SequenceGroup, logits_TV: Tensor) -> None:
    """Score the tokens after those of the chunk that the group's first row has just computed."""
    sequence = group.sequences[0]
    start = sequence.num_computed_tokens - len(logits_TV)
    stop = min(sequence.num_computed_tokens + 1, sequence.num_prompt_tokens)
    # A group that was preempted in its prompt begins again.
    scores = group.prompt_logprobs if start and group.prompt_logprobs else PromptLogprobs([], _no_top(group))
    next_ids = torch.from_numpy(sequence.token_ids[start + 1 : stop]).to(logits_TV.device)
    logprobs_TV = logits_TV[: len(next_ids)].log_softmax(-1)
    scores.logprobs.extend(logprobs_TV.gather(1, next_ids[:, None])[:, 0].tolist())
    if scores.top_logprobs is not None and len(next_ids):
        scores.top_logprobs.extend(most_likely(logprobs_TV, group.params.top_n_tokens))
    group.prompt_logprobs = scores
    if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
        group.wants_prompt_logprobs = False
        sequence.reuses_prefix = True


def most_likely(logprobs_TV: Tensor, count: int) -> list[list[TokenLogprob]]:
    """Of each row the ``count`` most likely tokens, in falling order."""
    values, ids = logprobs_TV.topk(min(count, logprobs_TV.shape[1]), dim=-1)
    return [
        [TokenLogprob(token_id, logprob) for token_id, logprob in zip(*row, strict=True)]
        for row in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _no_top(group: SequenceGroup) -> list[list[TokenLogprob]] | None:
    return [] if group.params.top_n_tokens else None
