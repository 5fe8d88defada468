"""Folders of encoder-decoders: which are served, within which limits, and with which defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    GenerationConfig,
    PreTrainedModel,
    RobertaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from server.commands.planned import PlannedModel, plan_model
from server.config import ModelConfig
from server.errors import ConfigurationError
from server.models.describe import task_of
from server.models.lengths import longest_input, longest_source
from server.models.loader import LoadedModel, load
from server.worker.__main__ import build
from tests.tiny_encoder_decoders import (
    FAMILIES,
    MAX_LEN,
    tiny_encoder_decoder,
    tiny_source_tokenizer,
    write_tiny_encoder_decoder,
)

OF_OTHER_INPUTS = (
    *("audioflamingo3", "glmasr", "granite_speech", "granite_speech_plus", "moss_transcribe_diarize", "musicflamingo"),
    *("nemo_speechlm", "qwen2_audio", "qwen3_asr", "t5gemma2", "vibevoice_asr", "voxtral", "voxtral_realtime"),
    *("seamless_m4t", "seamless_m4t_v2"),
)
"""Types of models for audio and images. SeamlessM4T writes text, but needs a language that its class puts in."""


def loaded(folder: Path, family: str = "bart", **settings: Any) -> LoadedModel:
    write_tiny_encoder_decoder(folder, family)
    return load(ModelConfig(name="m", path=str(folder), dtype="float32", **settings))


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "marian, two vocabularies", "led", "encoder-decoder"])
def test_a_folder_is_loaded_with_its_task_start_and_limits(family: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, family)
    assert model.task == "seq2seq"
    assert model.start_ids == [2]
    limit = 2048 if family == "t5" else MAX_LEN
    assert (model.max_model_len, model.max_source_len) == (limit, limit)


@pytest.mark.parametrize(
    "architecture",
    ["LlavaForConditionalGeneration", "WhisperForConditionalGeneration", "Qwen2AudioForConditionalGeneration",
     "T5Gemma2ForConditionalGeneration", "VisionEncoderDecoderModel", "SpeechEncoderDecoderModel"],
)  # fmt: skip
def test_a_model_that_reads_images_or_audio_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{architecture}, which no route serves"):
        task_of(tmp_path, [architecture])


@pytest.mark.parametrize(("model_type", "architecture"), MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items())
def test_every_family_of_transformers_is_served_or_refused_by_name(
    model_type: str, architecture: str, tmp_path: Path
) -> None:
    # Those with a tiny model are compared with transformers.
    if model_type in {family_type for family_type, _ in FAMILIES.values()}:
        assert task_of(tmp_path, [architecture]) == "seq2seq"
    else:
        assert model_type in OF_OTHER_INPUTS
        with pytest.raises(ConfigurationError, match=f"{architecture}, which no route serves"):
            task_of(tmp_path, [architecture])


@pytest.mark.parametrize(("family", "num_positions"), [("prophetnet", MAX_LEN - 1), ("roberta", MAX_LEN - 2)])
@torch.inference_mode()
def test_positions_that_begin_behind_the_paddings_are_fewer(family: str, num_positions: int) -> None:
    module = tiny_encoder_decoder(family) if family == "prophetnet" else roberta_pair()
    tokenizer, config = tiny_source_tokenizer(), ModelConfig(name="m", path="m")
    limit = longest_source(config, module, tokenizer)
    assert limit == longest_input(config, module, tokenizer, "seq2seq", None) == num_positions
    source, target = torch.full((1, limit), 5), torch.full((1, limit - 1), 5)
    module(input_ids=source, decoder_input_ids=target)
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=source, decoder_input_ids=torch.full((1, limit + 1), 5))


def roberta_pair() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = RobertaConfig(**sizes, vocab_size=50, max_position_embeddings=MAX_LEN, pad_token_id=1)
    decoder = RobertaConfig(**encoder.to_diff_dict() | {"is_decoder": True, "add_cross_attention": True})
    return AutoModelForSeq2SeqLM.from_config(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)).eval()


def test_lengths_and_forced_tokens_of_the_generation_config_are_defaults(tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path, "bart")
    fields = {"num_beams": 4, "length_penalty": 2.0, "min_length": 5, "max_length": 42, "forced_bos_token_id": 0,
              "forced_eos_token_id": 1, "no_repeat_ngram_size": 3, "bad_words_ids": [[2]]}  # fmt: skip
    GenerationConfig(decoder_start_token_id=2, eos_token_id=1, pad_token_id=2, **fields).save_pretrained(tmp_path)
    defaults = load(ModelConfig(name="m", path=str(tmp_path), dtype="float32")).generation_config
    assert fields.items() <= defaults.items()


def test_a_folder_without_a_length_sets_none(tmp_path: Path) -> None:
    assert "max_length" not in loaded(tmp_path, "t5").generation_config


def test_a_folder_that_names_no_start_is_refused(tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path, "t5")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((tmp_path / name).read_text())
        for field in ("decoder_start_token_id", "bos_token_id"):
            config.pop(field, None)
        (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="decoder_start_token_id"):
        load(ModelConfig(name="m", path=str(tmp_path), dtype="float32"))


def test_the_setting_bounds_source_and_output_alike(tmp_path: Path) -> None:
    model = loaded(tmp_path, "bart", max_model_len=64)
    assert (model.max_model_len, model.max_source_len) == (64, 64)
    with pytest.raises(ConfigurationError, match=f"{MAX_LEN} positions"):
        loaded(tmp_path, "bart", max_model_len=MAX_LEN + 1)


def test_a_worker_tells_the_front_the_limits_that_its_cache_holds(tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path, "t5")
    room = 70 * (2 * 2 * 48 * 4 * 32 + 48 * 4 * 32) / 2**30
    _, ready = build(ModelConfig(name="m", path=str(tmp_path), dtype="float32", executor="compat", kv_cache_gib=room))
    assert ready.task == "seq2seq"
    assert (ready.max_model_len, ready.max_source_len) == (35 * 32, 35 * 32)
    assert (ready.start_ids, ready.source_vocab_size) == ([2], 400)


def test_plan_counts_a_token_as_the_worker_does(tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path, "bart")
    config = ModelConfig(name="m", path=str(tmp_path), dtype="float32", executor="compat", kv_cache_gib=0.05)
    planned = plan_model(config)
    assert isinstance(planned, PlannedModel)
    _, ready = build(config)
    assert planned.cache is not None
    assert planned.cache.num_bytes == ready.kv_cache_bytes
    assert (planned.max_source_len, planned.max_model_len) == (ready.max_source_len, ready.max_model_len)


@pytest.mark.parametrize(("family", "targets"), [("t5", ["q", "v"]), ("bart", ["q_proj", "v_proj"])])
@torch.inference_mode()
def test_an_adapter_is_merged_into_its_base(family: str, targets: list[str], tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_tiny_encoder_decoder(base, family)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=targets, init_lora_weights=False)
    module = get_peft_model(tiny_encoder_decoder(family), config)
    module.save_pretrained(adapter)
    served = load(ModelConfig(name="m", path=str(adapter), base=str(base), dtype="float32"))
    assert served.task == "seq2seq"
    inputs = {"input_ids": torch.tensor([[5, 9, 200, 1]]), "decoder_input_ids": torch.tensor([[2, 40, 41]])}
    assert torch.allclose(served.module(**inputs).logits, module(**inputs).logits, atol=1e-4)
