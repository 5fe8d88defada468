"""The engine's state of one request: tokens so far, blocks, counts. Decides nothing."""

from __future__ import annotations

import numpy as np

from server.engine.batch_inputs import IntArray
from server.engine.processors import order as processors_order
from server.engine.processors.base import Start
from server.engine.stopping import Stopping
from server.protocol import Generate


class Sequence:
    """One request from arrival to end.

    `BlockManager` alone changes the block table and the hashes, `Scheduler` alone ``key`` and ``num_computed_tokens``.
    """

    __slots__ = (
        "block_hashes",
        "block_table",
        "cache_seed",
        "has_replied",
        "key",
        "num_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_tokens",
        "order",
        "params",
        "processors",
        "request_id",
        "sample_index",
        "stopping",
        "token_ids",
    )

    def __init__(self, command: Generate, *, max_model_len: int, block_size: int, order: int = 0) -> None:
        self.request_id = command.request_id
        self.params = command.params
        self.order = order
        """Place in the order of arrival."""
        self.num_prompt_tokens = len(command.prompt_ids)
        output_ids = command.outputs[0].token_ids if command.outputs else []
        self.num_tokens = self.num_prompt_tokens + len(output_ids)
        """Known tokens: prompt and output."""
        self.stopping = Stopping(command.params, self.num_prompt_tokens, max_model_len)
        capacity = max(self.stopping.max_tokens, self.num_tokens)
        self.token_ids: IntArray = np.zeros(capacity, dtype=np.int64)
        self.token_ids[: self.num_prompt_tokens] = command.prompt_ids
        self.token_ids[self.num_prompt_tokens : self.num_tokens] = output_ids
        self.sample_index = 0
        """Which of the request's samples this is; part of the random number's key."""
        self.processors = processors_order.for_sequence(
            Start(
                params=command.params,
                prompt_ids=self.token_ids[: self.num_prompt_tokens],
                output_ids=self.token_ids[self.num_prompt_tokens : self.num_tokens],
                ending_ids=self.stopping.ending_ids,
                max_tokens=self.stopping.max_tokens,
            )
        )
        self.num_computed_tokens = 0
        self.block_table: IntArray = np.zeros(-(-capacity // block_size), dtype=np.int64)
        """Room for the longest output; the first ``num_blocks`` are in use."""
        self.num_blocks = 0
        self.block_hashes: list[bytes] = []
        """Of the leading full blocks of known tokens, as far as they were needed; outlives a preemption."""
        self.num_published_blocks = 0
        """Leading blocks that the prefix cache knows or was offered."""
        self.cache_seed = b""
        """Start of the hash chain: sequences with different seeds share no block (adapter, tenant salt)."""
        self.key: int | None = None
        """Given with the first blocks, taken with the last."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens found in the prefix cache at first admission; None before."""
        self.has_replied = False

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_new_tokens(self) -> int:
        """Known tokens that are not computed yet."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def output_ids(self) -> list[int]:
        ids: list[int] = self.token_ids[self.num_prompt_tokens : self.num_tokens].tolist()
        return ids

    def append(self, token_id: int) -> None:
        """Take a chosen token into the output."""
        self.token_ids[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.processors:
            for processor in self.processors:
                processor.accept(token_id)
            self.processors = tuple(processor for processor in self.processors if not processor.is_spent)
