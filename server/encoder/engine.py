"""Encoders, one step at a time: token ids in, scores out. Knows nothing of text, labels or HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from server.adapter_table import AdapterTable
from server.encoder.adapter_queue import AdapterQueue
from server.encoder.batching import FlatRequests, PaddedRequests, WaitingRequests
from server.encoder.forward import Forward
from server.encoder.heads import head_of
from server.encoder.mixed import EncoderAdapter, MixedSteps, attempt
from server.protocol import Encode, Failed, Generate, LoadAdapter, Reply, Scores, Stats, UnloadAdapter
from server.tasks import TASKS
from server.token_budget import TokenBudget

MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}
"""Token places of one step where the settings name no limit. On a CPU a budget below it is learned."""

STEP_S = 0.25
"""About the longest step: a short text that comes meanwhile waits for it."""

NUM_ALONE = 3
"""Of the sample's texts, those that show what a small step costs."""


def default_max_batch_tokens(device: torch.device) -> int:
    """The most token places of a step where the settings name no limit."""
    return MAX_BATCH_TOKENS[device.type]


def default_token_budget(device: torch.device) -> TokenBudget | None:
    """How many of them are worth it on a CPU, where the settings name no limit; None elsewhere: all of them."""
    if device.type != "cpu":
        return None
    return TokenBudget(first=256, usual=1024, most=default_max_batch_tokens(device), step_s=STEP_S)


class EncoderEngine:
    """Runs a classifier, a tagger, a masked language model or a model for embeddings: one forward a step.

    A request's scores do not depend on who shares its step, within float rounding. An exception from ``step`` is the
    worker's end; a request that cannot be run is answered with `Failed` and never reaches the model.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        task: str,
        max_batch_tokens: int,
        max_model_len: int,
        token_budget: TokenBudget | None = None,
        adapters: AdapterTable[EncoderAdapter] | None = None,
        sample: Sequence[Encode] = (),
    ) -> None:
        """``token_budget`` learns from the engine's steps how many tokens within ``max_batch_tokens`` are worth it.

        ``adapters`` are those that requests may name; new ones are tried with ``sample``.
        """
        self._forward = forward
        self._reads_masks = TASKS[task].reads == "masks"
        self._head = head_of(task)
        self._sample = sample
        self._adapters = AdapterQueue(adapters or AdapterTable[EncoderAdapter](), self._attempt)
        self._mixed = None if forward.flat is None else MixedSteps(forward.flat, self._head)
        self._max_model_len = max_model_len
        self._vocab_size = int(forward.module.get_input_embeddings().weight.shape[0])
        self._waiting = _requests_for(forward, max_batch_tokens if token_budget is None else token_budget.num_tokens)
        self._token_budget = token_budget
        self._refused: dict[str, Failed] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would answer anything."""
        return bool(self._waiting or self._refused or self._adapters.has_work)

    def add(self, command: Generate | Encode) -> None:
        """Queue a request; one that cannot be run is answered by the next step."""
        problem = self._problem(command)
        if problem is not None:
            self._refused[command.request_id] = Failed(command.request_id, "internal_error", problem)
        elif isinstance(command, Encode) and self._adapters.hold_or_add(command):
            self._waiting.add(command)

    def learn(self, sample: Sequence[Encode]) -> None:
        """Run a few texts alone and then all together: the first requests find a token budget for this machine."""
        for command in sample[:NUM_ALONE]:
            self.add(command)
            self.step()
        for command in sample:
            self.add(command)
        while self.has_work:
            self.step()

    def abort(self, request_id: str, index: int | None = None) -> None:  # noqa: ARG002
        """Forget a request; an unknown one is no error."""
        self._waiting.abort(request_id)
        self._adapters.forget(request_id)
        self._refused.pop(request_id, None)

    def change_adapters(self, command: LoadAdapter | UnloadAdapter) -> None:
        """Know another adapter, or forget one, which those that have it keep. Later steps answer."""
        self._adapters.change(command)

    def step(self) -> list[Reply]:
        """Encode one batch and answer all of it; the last reply is `Stats`."""
        start = time.perf_counter()
        if self._adapters.has_work:
            self._follow_adapters()
        replies: list[Reply] = [*self._refused.values(), *self._adapters.take_states()]
        self._refused.clear()
        batch = self._waiting.take() if self._waiting else []
        forward_s = 0.0
        if batch:
            answers, forward_s = self._encode(batch)
            replies.extend(answers)
        stats = self._stats(batch, forward_s, time.perf_counter() - start)
        if batch and self._token_budget is not None:
            self._token_budget.observe(stats.batch_tokens + stats.padded_tokens, stats.step_s)
            self._waiting.max_batch_tokens = self._token_budget.num_tokens
        replies.append(stats)
        return replies

    def _encode(self, batch: Sequence[Encode]) -> tuple[list[Scores | Failed], float]:
        start = time.perf_counter()
        adapters = self._adapters.take_held(batch)
        with torch.inference_mode():
            if self._mixed is not None and adapters:
                answers = self._mixed.replies(batch, adapters)
            else:
                answers = self._head.replies(self._forward, batch)
        return answers, time.perf_counter() - start

    def _follow_adapters(self) -> None:
        ready, failed = self._adapters.take_ready(is_idle=not (self._waiting or self._refused))
        for command in ready:
            self._waiting.add(command)
        self._refused |= {reply.request_id: reply for reply in failed}

    def _attempt(self, adapter: EncoderAdapter) -> bool:
        assert self._forward.flat is not None, "only such an engine has adapters"
        attempt(self._forward.flat, adapter, self._sample)
        return True

    def _stats(self, batch: Sequence[Encode], forward_s: float, step_s: float) -> Stats:
        lengths = [len(command.token_ids) for command in batch]
        num_tokens = sum(lengths)
        num_places = max(lengths, default=0) * len(batch) if self._forward.is_padded else num_tokens
        return Stats(
            num_waiting=len(self._waiting) + len(self._adapters),
            batch_size=len(batch),
            batch_tokens=num_tokens,
            padded_tokens=num_places - num_tokens,
            prompt_tokens=num_tokens,
            token_budget=0 if self._token_budget is None else self._token_budget.num_tokens,
            step_s=step_s,
            forward_s=forward_s,
            started=[command.request_id for command in batch],
        )

    def _problem(self, command: Generate | Encode) -> str | None:
        """Why the command cannot be run. The front has checked all of this: a problem is a fault of ours."""
        if not isinstance(command, Encode):
            return "This model encodes and does not generate."
        if command.adapter and not self._adapters.knows(command.adapter):
            return "The adapter that the request names is not loaded, or its files have changed since."
        if command.request_id in self._waiting or command.request_id in self._adapters:
            return "A request with this id is already waiting."
        if not 0 < len(command.token_ids) <= self._max_model_len:
            return f"The input has {len(command.token_ids)} tokens; the model takes 1 to {self._max_model_len}."
        if not _all_below(command.token_ids, self._vocab_size):
            return f"A token id must be less than {self._vocab_size}."
        return self._type_problem(command) or self._mask_problem(command)

    def _type_problem(self, command: Encode) -> str | None:
        types = command.token_type_ids
        if types is None:
            return None
        if len(types) != len(command.token_ids):
            return "The number of token types differs from the number of tokens."
        if self._forward.num_token_types and not _all_below(types, self._forward.num_token_types):
            return f"A token type must be less than {self._forward.num_token_types}."
        return None

    def _mask_problem(self, command: Encode) -> str | None:
        query = command.mask
        if (query is not None) != (self._reads_masks and not command.adapter):
            return "Mask queries require a masked language model, and it takes no other."
        if query is None:
            return None
        if not query.positions or not _all_below(query.positions, len(command.token_ids)):
            return "Mask positions must lie within the input, and there must be at least one."
        if not 0 < query.top_k <= self._vocab_size:
            return f"top_k is {query.top_k}; it must be 1 to {self._vocab_size}."
        if query.target_ids is not None and not (query.target_ids and _all_below(query.target_ids, self._vocab_size)):
            return f"Targets must be token ids less than {self._vocab_size}, and at least one."
        return None


def _all_below(values: Sequence[int], limit: int) -> bool:
    return min(values) >= 0 and max(values) < limit


def _requests_for(forward: Forward, max_batch_tokens: int) -> WaitingRequests:
    if forward.grouping is None:
        return FlatRequests(max_batch_tokens)
    return PaddedRequests(max_batch_tokens, forward.grouping)
