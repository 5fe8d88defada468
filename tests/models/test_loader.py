"""Folders become models with the right facts, or are refused in one sentence that names the folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.models.folders import BERT, edit, read, refusal, write
from tests.tiny_models import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    EOS_ID,
    MAX_MODEL_LEN,
    tiny_tokenizer,
)


def test_a_decoder_comes_with_its_tokenizer_limits_and_defaults(decoder: Path) -> None:
    edit(decoder, "generation_config.json", lambda c: c.update(do_sample=True, temperature=0.6, eos_token_id=[1, 7]))
    (decoder / "ATTRIBUTION").write_text("Made by somebody.\n")
    loaded = read(decoder, dtype="float32")
    assert loaded.task == "generate"
    assert loaded.architecture == "LlamaForCausalLM"
    assert loaded.max_model_len == MAX_MODEL_LEN
    assert loaded.generation_config == {"do_sample": True, "temperature": 0.6, "end_token_ids": [1, 7]}
    assert loaded.labels == []
    assert loaded.attribution == "Made by somebody."
    assert loaded.num_parameters == sum(p.numel() for p in loaded.module.parameters())
    assert not loaded.module.training
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == (BOS, EOS, CHAT_TEMPLATE)
    text = "The mill, \u4f60\u597d \U0001f600"
    assert Tokenizer.from_str(tokenizer.tokenizer_json).encode(text).ids == tiny_tokenizer()(text)["input_ids"]


def test_unset_defaults_stay_out_and_the_end_token_is_always_there(decoder: Path) -> None:
    assert read(decoder).generation_config == {"end_token_ids": [EOS_ID]}
    (decoder / "generation_config.json").unlink()
    assert read(decoder).generation_config == {"end_token_ids": [EOS_ID]}


@pytest.mark.parametrize(
    ("end", "expected"), [([1, 5], [1, 5]), (None, [EOS_ID]), ([], []), (-1, []), ([-1, 5], [5]), (0, [0])]
)
def test_every_way_to_write_end_tokens_is_understood(decoder: Path, end: Any, expected: list[int]) -> None:
    edit(decoder, "generation_config.json", lambda c: c.update(eos_token_id=end, temperature=None, top_k=None))
    assert read(decoder).generation_config == {"end_token_ids": expected}


def test_every_rule_of_a_generation_config_that_the_engine_knows_is_read(decoder: Path) -> None:
    rules = {
        "num_beams": 4,
        "early_stopping": "never",
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[4, 5]],
        "suppress_tokens": [7],
        "forced_eos_token_id": 1,
        "exponential_decay_length_penalty": [5, 1.1],
        "sequence_bias": [[[4, 5], -2.0]],
        "renormalize_logits": True,
    }
    edit(decoder, "generation_config.json", lambda c: c.update(rules, max_length=20, top_h=0.5))
    assert read(decoder).generation_config == {**rules, "end_token_ids": [EOS_ID]}


@pytest.mark.parametrize("field", [{"eos_token_id": "</s>"}, {"eos_token_id": 5.5}, {"repetition_penalty": "1.2"}])
def test_a_default_that_is_no_number_is_refused_by_name(decoder: Path, field: dict[str, Any]) -> None:
    edit(decoder, "generation_config.json", lambda c: c.update(field))
    assert next(iter(field)) in refusal(decoder)
    (decoder / "generation_config.json").write_text("{nonsense")
    assert "generation_config.json cannot be read as JSON" in refusal(decoder)


def test_the_tokenizer_comes_without_truncation_and_padding(decoder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(decoder / "tokenizer.json"))
    files = read(decoder).tokenizer
    assert 3 < len(Tokenizer.from_str(files.tokenizer_json).encode("The river runs past the mill").ids) < 50


def test_rotary_frequencies_stay_in_float32_in_every_dtype(decoder: Path) -> None:
    loaded = read(decoder, dtype="bfloat16")
    assert loaded.module.dtype == torch.bfloat16
    assert loaded.module.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "task"),
    [(BertForSequenceClassification, "classify"), (BertForTokenClassification, "ner"), (BertForMaskedLM, "fill-mask")],
)
def test_an_encoders_task_is_read_from_its_head(tmp_path: Path, kind: Any, task: str) -> None:
    config = BertConfig(**BERT, id2label={0: "no", 1: "yes", 2: "perhaps"}, problem_type="multi_label_classification")
    loaded = read(write(tmp_path, kind(config)))
    assert loaded.task == task
    assert loaded.module.dtype == torch.float32
    assert loaded.max_model_len == 64
    assert loaded.labels == ([] if task == "fill-mask" else ["no", "yes", "perhaps"])
    assert loaded.problem_type == ("multi_label_classification" if task == "classify" else None)
    assert loaded.generation_config == {}


@pytest.mark.parametrize("pad_token_id", [0, 1])
def test_robertas_position_table_is_longer_than_its_longest_input(tmp_path: Path, pad_token_id: int) -> None:
    config = RobertaConfig(**{**BERT, "max_position_embeddings": 66}, pad_token_id=pad_token_id)
    assert read(write(tmp_path, RobertaForSequenceClassification(config))).max_model_len == 65 - pad_token_id


def test_a_shorter_limit_can_be_set_and_a_longer_one_is_refused(decoder: Path) -> None:
    assert read(decoder, max_model_len=100).max_model_len == 100
    assert "is 5000 and the model has 512 positions" in refusal(decoder, max_model_len=5000)


def test_a_head_that_no_route_serves_is_refused_by_its_architecture(tmp_path: Path, bert: BertModel) -> None:
    folder = write(tmp_path, bert)
    edit(folder, "config.json", lambda c: c.update(architectures=["BertForMultipleChoice"]))
    assert "holds BertForMultipleChoice, which no route serves" in refusal(folder)


def test_weights_that_would_be_random_are_refused_by_name(tmp_path: Path, bert: BertModel) -> None:
    folder = write(tmp_path, bert)
    edit(folder, "config.json", lambda c: c.update(architectures=["BertForSequenceClassification"]))
    assert "lack classifier.bias, classifier.weight" in refusal(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in refusal(tmp_path / "gone")


def test_every_broken_folder_is_refused_by_what_is_wrong(decoder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(decoder, tmp_path / name))

    folder = broken("no config")
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)

    folder = broken("bad config")
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(folder)

    folder = broken("no weights")
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)

    folder = broken("pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin, a format that can run code" in refusal(folder)

    folder = broken("truncated")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be loaded" in refusal(folder)

    folder = broken("absent weight")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack model.layers.1.mlp.up_proj.weight" in refusal(folder)

    folder = broken("other shape")
    edit(folder, "config.json", lambda c: c.update(intermediate_size=96))
    assert "cannot be loaded" in refusal(folder)

    folder = broken("no tokenizer")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in refusal(folder)

    folder = broken("bad tokenizer")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    assert "The tokenizer in" in refusal(folder)

    folder = broken("unknown type")
    edit(folder, "config.json", lambda c: c.update(model_type="llamoid"))
    assert "'llamoid', which transformers does not know" in refusal(folder)

    folder = broken("own code")
    edit(folder, "config.json", lambda c: c.update(model_type="llamoid", auto_map={"AutoConfig": "c.Llamoid"}))
    assert "Python code of its own" in refusal(folder)


def test_code_in_a_folder_is_never_run(decoder: Path) -> None:
    """A native architecture loads although its config points at code."""
    (decoder / "evil.py").write_text("raise SystemExit('this ran')")
    edit(decoder, "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.Evil"}))
    assert read(decoder).architecture == "LlamaForCausalLM"


def test_a_device_that_is_not_here_is_refused(decoder: Path) -> None:
    assert "asks for cuda:77" in refusal(decoder, device="cuda:77")
