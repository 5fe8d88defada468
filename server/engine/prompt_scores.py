"""Log-probabilities of a prompt's own tokens, from the logits of its chunks.

Dimension key
    T  tokens of a chunk
    V  vocabulary size
"""

from __future__ import annotations

from torch import Tensor

from server.engine.logprobs import logprobs_of
from server.engine.sequence_group import SequenceGroup
from server.protocol import PromptLogprobs


def take(group: SequenceGroup, logits_TV: Tensor) -> None:
    """Score the tokens after those of the chunk that the group's first row has just computed."""
    sequence = group.sequences[0]
    start = sequence.num_computed_tokens - len(logits_TV)
    stop = min(sequence.num_computed_tokens + 1, sequence.num_prompt_tokens)
    top_n = group.params.top_n_tokens
    # A group that was preempted in its prompt begins again.
    scores = group.prompt_logprobs if start and group.prompt_logprobs else PromptLogprobs([], [] if top_n else None)
    # The first token is not scored, nor is what an adapter puts before it.
    num_unscored = max(0, sequence.num_virtual - start)
    next_ids = sequence.token_ids[start + num_unscored + 1 : stop].tolist()
    logits_TV = logits_TV[num_unscored : num_unscored + len(next_ids)]
    logprobs, top_logprobs = logprobs_of(logits_TV, next_ids, top_n)
    scores.logprobs.extend(logprobs)
    if scores.top_logprobs is not None:
        scores.top_logprobs.extend(top_logprobs)
    group.prompt_logprobs = scores
    if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
        group.wants_prompt_logprobs = False
        sequence.reuses_prefix = True
