"""A folder says how its vectors are made, in sentence-transformers' files; what is not done here is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from server.models.loader import LoadedModel
from server.protocol import Embedding
from tests.models.folders import BERT, IDS, read, refusal, write

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def sentence_model(
    folder: Path,
    pooling: dict[str, Any] | None = None,
    modules: tuple[dict[str, Any], ...] = (TRANSFORMER, POOLING),
    module: type = BertModel,
    **files: Any,
) -> Path:
    """As sentence-transformers saves it; ``files`` by name without ending."""
    write(folder, module(BertConfig(**BERT)))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    for name, content in {"modules": modules, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def embedding(loaded: LoadedModel) -> Embedding:
    assert loaded.task == "embed" and loaded.labels == [] and loaded.embedding is not None
    return loaded.embedding


def test_a_model_without_a_head_makes_embeddings_by_the_mean_as_they_come(tmp_path: Path) -> None:
    loaded = read(write(tmp_path, BertModel(BertConfig(**BERT))))
    assert embedding(loaded) == Embedding(size=32, pooling="mean", is_normalized=False)
    assert loaded.architecture == "BertModel" and loaded.max_model_len == 64


@pytest.mark.parametrize("flag", FLAGS)
def test_each_way_of_pooling_is_read_in_its_old_and_its_new_form(tmp_path: Path, flag: str) -> None:
    mode = flag.removesuffix("_token").removesuffix("_tokens") if flag != "mean_sqrt_len_tokens" else flag
    old = {f"pooling_mode_{other}": other == flag for other in FLAGS}
    assert embedding(read(sentence_model(tmp_path / "old", {**old, "include_prompt": True}))).pooling == mode
    new = {"pooling_mode": mode, "embedding_dimension": 32}
    assert embedding(read(sentence_model(tmp_path / "new", new))).pooling == mode


def test_normalisation_length_and_prompts_are_read(tmp_path: Path) -> None:
    folder = sentence_model(
        tmp_path,
        modules=(TRANSFORMER, POOLING, NORMALIZE),
        sentence_bert_config={"max_seq_length": 24, "do_lower_case": False},
        config_sentence_transformers={"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"},
    )
    loaded = read(folder)
    assert loaded.max_model_len == 24
    assert embedding(loaded) == Embedding(
        size=32,
        pooling="mean",
        is_normalized=True,
        prompts={"query": "query: ", "document": ""},
        default_prompt="query",
    )


def test_a_saved_sentence_model_makes_embeddings_whatever_head_its_weights_have(tmp_path: Path) -> None:
    loaded = read(sentence_model(tmp_path, module=BertForMaskedLM))
    assert embedding(loaded).pooling == "mean" and loaded.architecture == "BertModel"


def test_a_decoder_makes_embeddings_of_its_last_token_where_the_settings_ask_for_them(decoder: Path) -> None:
    assert read(decoder).embedding is None
    loaded = read(decoder, task="embed")
    assert embedding(loaded).pooling == "lasttoken" and loaded.architecture == "LlamaModel"


def test_an_adapter_makes_embeddings_by_the_pooling_that_it_was_trained_with(tmp_path: Path) -> None:
    base = write(tmp_path / "base", BertModel(BertConfig(**BERT)))
    folder = sentence_model(tmp_path / "adapter", {"pooling_mode": "cls"}, (TRANSFORMER, POOLING, NORMALIZE))
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=4, lora_alpha=8, target_modules=["query", "value"])
    adapted = get_peft_model(BertModel.from_pretrained(base), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    loaded = read(folder)
    assert (embedding(loaded).pooling, embedding(loaded).is_normalized) == ("cls", True)
    with torch.inference_mode():
        expected = adapted(IDS).last_hidden_state[:, 0]
        torch.testing.assert_close(loaded.module(IDS, torch.ones_like(IDS)).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_is_no_model_for_embeddings(tmp_path: Path) -> None:
    assert read(write(tmp_path, BertForSequenceClassification(BertConfig(**BERT)))).embedding is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}}, "pools by cls and max"),
        ({"pooling": {"pooling_mode_mean_tokens": False}}, "pools by nothing"),
        ({"pooling": {"pooling_mode": "median"}}, "pools by median"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, "leaves prompts out of its pooling"),
        ({"modules": (TRANSFORMER, POOLING, {"type": "x.Dense", "path": "2_Dense"})}, "has the module Dense"),
        ({"modules": {"type": "x"}}, "is not a JSON list"),
        ({"modules": [{"kind": "x"}]}, "is not a list of modules"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "asks for do_lower_case"),
    ],
)
def test_what_would_change_the_vectors_and_is_not_done_here_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(sentence_model(tmp_path, **changes))
