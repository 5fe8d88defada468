"""What the answers of OpenAI's text routes have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from server.serving.generation import Generation
from server.serving.output_text import OutputText
from server.serving.record import RequestRecord

FINISH_REASONS = {"length": "length", "max_time": "length", "stop": "stop", "banned_phrase": "content_filter"}
"""In the words that clients know."""


class Usage(msgspec.Struct):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int] | UnsetType = UNSET
    """Only of models that reason."""


def usage(generations: Sequence[Generation], num_reasoning: int | None = None, *, is_scored: bool = False) -> Usage:
    """Of all that was computed so far, samples that are not answered as well; of those no reasoning is counted."""
    num_prompt = sum(len(generation.prompt.input_ids) for generation in generations)
    num_new = 0 if is_scored else sum(generation.num_tokens for generation in generations)
    num_cached = sum(generation.cached_tokens for generation in generations)
    details = UNSET if num_reasoning is None else {"reasoning_tokens": num_reasoning}
    return Usage(num_prompt, num_new, num_prompt + num_new, {"cached_tokens": num_cached}, details)


def head(kind: str, id_prefix: str, record: RequestRecord) -> dict[str, Any]:
    """What an answer and all chunks of a stream begin with."""
    return {
        "id": f"{id_prefix}-{record.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": record.model,
    }


def ending(output: OutputText) -> dict[str, Any]:
    """How an output ended: ``stop_reason`` is the stop string or stop token, as with vLLM, or a reason of our own."""
    reason = output.finish_reason or "stop"
    stop = None if output.ended_by_end_token else output.stop
    return {
        "finish_reason": FINISH_REASONS[reason],
        "stop_reason": reason if reason in ("banned_phrase", "max_time") else stop,
    }
