"""Numbers of a config that mean "none" are read as none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import XLNetConfig, XLNetForSequenceClassification

from server.commands.planned import plan_model
from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models.configs import WIDEST_WINDOW, without_sentinels
from server.models.lengths import FALLBACK_LENGTH
from tests.models.folders import IDS, edit, read, refusal, write
from tests.tiny_models import EOS_ID, MAX_MODEL_LEN, SLIDING_WINDOW, VOCAB_SIZE, write_tiny_decoder


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_limit_that_means_none_falls_back_to_the_default_length(decoder: Path, limit: int) -> None:
    edit(decoder, "config.json", lambda c: c.update(max_position_embeddings=limit))
    edit(decoder, "tokenizer_config.json", lambda c: c.update(model_max_length=-1))
    assert read(decoder).max_model_len == FALLBACK_LENGTH
    assert plan_model(ModelConfig(name="tiny", path=str(decoder))).max_model_len == FALLBACK_LENGTH


def test_xlnet_has_no_limit_of_its_own(tmp_path: Path) -> None:
    config = XLNetConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layer=1, n_head=2, d_inner=48)
    assert config.max_position_embeddings == -1
    assert read(write(tmp_path, XLNetForSequenceClassification(config))).max_model_len == FALLBACK_LENGTH


@pytest.mark.parametrize("pad", [-1, VOCAB_SIZE, 32_000])
def test_a_padding_token_outside_the_vocabulary_is_none(decoder: Path, pad: int) -> None:
    expected = read(decoder, dtype="float32").module(IDS).logits
    edit(decoder, "config.json", lambda c: c.update(pad_token_id=pad))
    loaded = read(decoder, dtype="float32")
    assert loaded.config.pad_token_id is None
    assert torch.equal(loaded.module(IDS).logits, expected)


@pytest.mark.parametrize("window", [-1, 0])
@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_window_that_means_none_masks_nothing(tmp_path: Path, family: str, window: int) -> None:
    folder = write_tiny_decoder(tmp_path, family)
    ids = torch.arange(5, 5 + 2 * SLIDING_WINDOW)[None]
    edit(folder, "config.json", lambda c: c.update(sliding_window=10_000))
    expected = read(folder, dtype="float32").module(ids).logits
    edit(folder, "config.json", lambda c: c.update(sliding_window=window))
    loaded = read(folder, dtype="float32")
    assert loaded.config.sliding_window == (None if family == "mistral" else WIDEST_WINDOW)
    torch.testing.assert_close(loaded.module(ids).logits, expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"final_logit_softcapping": 0.0}, {"final_logit_softcapping": None}),
        ({"final_logit_softcapping": 30.0}, {"final_logit_softcapping": 30.0}),
        ({"sliding_window": 4096}, {"sliding_window": 4096}),
        ({"text_config": {"sliding_window": -1}}, {"text_config": {"sliding_window": None}}),
        ({"pad_token_id": 0, "vocab_size": 5}, {"pad_token_id": 0, "vocab_size": 5}),
        ({"pad_token_id": 5, "vocab_size": -1}, {"pad_token_id": 5, "vocab_size": -1}),
        ({"use_sliding_window": False}, {"use_sliding_window": False}),
    ],
)
def test_reads_only_sentinels_as_none(content: dict[str, Any], expected: dict[str, Any]) -> None:
    assert without_sentinels(content) == expected


@pytest.mark.parametrize(
    "unset", [{"top_k": -1}, {"forced_bos_token_id": -1}, {"no_repeat_ngram_size": -1}, {"suppress_tokens": [-1]}]
)
def test_sentinels_of_a_generation_config_set_nothing(decoder: Path, unset: dict[str, Any]) -> None:
    edit(decoder, "generation_config.json", lambda c: c.update(unset))
    assert read(decoder).generation_config == {"end_token_ids": [EOS_ID]}


def test_refuses_a_field_of_the_wrong_type_in_one_sentence(decoder: Path) -> None:
    edit(decoder, "config.json", lambda c: c.update(max_position_embeddings=None))
    assert "'max_position_embeddings' expected int" in refusal(decoder)
    with pytest.raises(ConfigurationError, match="max_position_embeddings"):
        plan_model(ModelConfig(name="tiny", path=str(decoder)))


def test_a_dynamic_rotary_scaling_extends_the_limit(decoder: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    edit(decoder, "config.json", lambda c: c.update(rope_parameters=rope))
    assert read(decoder).max_model_len == 2 * MAX_MODEL_LEN


def test_a_gap_in_the_labels_is_refused(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        XLNetForSequenceClassification(XLNetConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layer=1, n_head=2, d_inner=48)),
    )
    edit(folder, "config.json", lambda c: c.update(id2label={"0": "no", "2": "yes"}, label2id={"no": 0, "yes": 2}))
    assert "has no label 1" in refusal(folder)
