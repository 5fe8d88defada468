"""Lengths of encoder-decoder models: transformers counts what the decoder writes, with the token that starts it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from server.errors import InvalidParameter
from tests.api.scripted import ready
from tests.serving.resolving import resolved

DEFAULTS = {"max_length": 42, "min_length": 6, "num_beams": 4, "length_penalty": 2.0, "end_token_ids": [1]}
MODEL = msgspec.structs.replace(ready(), task="seq2seq", max_source_len=64, start_ids=[2], generation_config=DEFAULTS)


@pytest.mark.parametrize(
    ("request_", "most", "least"),
    [
        ({}, 41, 5),
        ({"max_new_tokens": 10}, 10, 5),
        ({"max_length": 10}, 9, 5),
        ({"max_new_tokens": 3}, 3, 3),
        ({"min_new_tokens": 9}, 41, 9),
        ({"min_length": 9}, 41, 8),
    ],
)
def test_the_requests_lengths_come_before_the_models(request_: dict[str, Any], most: int, least: int) -> None:
    params = resolved(request_, MODEL, num_prompt_tokens=1).params
    assert (params.max_new_tokens, params.min_new_tokens) == (most, least)


def test_a_model_without_lengths_writes_as_much_as_the_server_allows_by_default() -> None:
    model = msgspec.structs.replace(MODEL, generation_config={"end_token_ids": [1]})
    assert resolved({}, model, num_prompt_tokens=1).params.max_new_tokens == 16


def test_a_longer_start_than_the_models_own_length_still_leaves_a_token() -> None:
    model = msgspec.structs.replace(MODEL, generation_config={"max_length": 2, "end_token_ids": [1]})
    assert resolved({}, model, num_prompt_tokens=4).params.max_new_tokens == 1
    with pytest.raises(InvalidParameter, match="max_length"):
        resolved({"max_length": 2}, model, num_prompt_tokens=4)


def test_the_models_beams_hold_where_the_request_names_none() -> None:
    params = resolved({}, MODEL, num_prompt_tokens=1).params
    assert (params.num_beams, params.length_penalty) == (4, 2.0)
    assert resolved({"num_beams": 1}, MODEL, num_prompt_tokens=1).params.num_beams == 1
