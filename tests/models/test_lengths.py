"""How long one input may be, and what else a tokenizer's files decide."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import BigBirdConfig, BigBirdModel, PreTrainedTokenizerFast

from server.commands.planned import plan_model
from server.config import ModelConfig
from server.models.lengths import longest_input
from server.models.tokenizer_files import tokenizer_files
from tests.models.folders import edit, read, refusal
from tests.tiny_encoders import CLS_ID, MAX_MODEL_LEN, SEP_ID, tiny_tokenizer, write_encoder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path, "bert", "classify")


def set_limit(folder: Path, limit: float) -> None:
    edit(folder, "tokenizer_config.json", lambda config: config.update(model_max_length=limit))


def test_an_encoder_reads_as_many_tokens_as_its_tokenizer_says(encoder: Path) -> None:
    set_limit(encoder, 20)
    assert read(encoder).max_model_len == 20
    assert plan_model(ModelConfig(name="tiny", path=str(encoder))).max_model_len == 20


def test_an_operator_may_set_more_than_the_tokenizer_says_up_to_the_models_positions(encoder: Path) -> None:
    set_limit(encoder, 20)
    assert read(encoder, max_model_len=50).max_model_len == 50
    assert f"the model has {MAX_MODEL_LEN} positions" in refusal(encoder, max_model_len=MAX_MODEL_LEN + 1)


@pytest.mark.parametrize("limit", [1e30, 10**30, 0, -1, 5000])
def test_a_limit_of_the_tokenizer_that_limits_nothing_leaves_the_models_positions(encoder: Path, limit: float) -> None:
    set_limit(encoder, limit)
    assert read(encoder).max_model_len == MAX_MODEL_LEN


def test_a_block_sparse_models_longest_text_leaves_positions_for_its_last_block() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    blocks = {"attention_type": "block_sparse", "block_size": 16, "num_random_blocks": 1}
    module = BigBirdModel(BigBirdConfig(**sizes, **blocks, vocab_size=50, max_position_embeddings=200)).eval()
    limit = longest_input(ModelConfig(name="m", path="m"), module, tiny_tokenizer_without_limit(), "embed", None)
    assert limit == 192
    with torch.inference_mode():
        module(torch.ones((1, limit), dtype=torch.long))
        with pytest.raises(RuntimeError):
            module(torch.ones((1, limit + 1), dtype=torch.long))


def tiny_tokenizer_without_limit() -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer("wordpiece"))
    tokenizer.model_max_length = 10**30
    return tokenizer


def test_a_prompt_may_be_longer_than_the_tokenizer_says(decoder: Path) -> None:
    set_limit(decoder, 20)
    assert read(decoder).max_model_len == 512


def test_the_tokens_around_a_text_are_read_from_the_tokenizer() -> None:
    files = tokenizer_files(tiny_tokenizer("wordpiece"))
    assert (files.prefix_ids, files.suffix_ids) == ([CLS_ID], [SEP_ID])


def test_token_types_and_the_side_of_truncation_are_read_from_the_tokenizer(encoder: Path) -> None:
    files = read(encoder).tokenizer
    assert (files.gives_token_types, files.truncation_side) == (True, "right")
    edit(
        encoder,
        "tokenizer_config.json",
        lambda config: config.update(model_input_names=["input_ids", "attention_mask"], truncation_side="left"),
    )
    files = read(encoder).tokenizer
    assert (files.gives_token_types, files.truncation_side) == (False, "left")
