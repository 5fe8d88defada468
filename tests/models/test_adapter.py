"""Adapters are merged into their base with head, labels and new tokens, or are refused by what is wrong."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from server.models.loader import LoadedModel
from tests.models.folders import BERT, IDS, edit, read, refusal, write
from tests.tiny_encoders import tiny_encoder
from tests.tiny_models import (
    VOCAB_SIZE,
    tiny_config,
)


def train(module: PreTrainedModel, targets: Any = None, **settings: Any) -> PeftModel:
    """An adapter whose products and head are far from doing nothing."""
    targets = targets or (["query", "value"] if "task_type" in settings else ["q_proj", "v_proj"])
    torch.manual_seed(2)
    adapted = get_peft_model(module, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return adapted.eval()


@pytest.mark.parametrize(
    ("kind", "task_type", "task"),
    [
        (AutoModelForSequenceClassification, "SEQ_CLS", "classify"),
        (AutoModelForTokenClassification, "TOKEN_CLS", "ner"),
    ],
)
def test_an_adapter_on_a_headless_base_is_merged_with_its_head_and_labels(
    tmp_path: Path, bert: BertModel, kind: Any, task_type: str, task: str
) -> None:
    base = write(tmp_path / "base", bert)
    labels = {0: "bad", 1: "so so", 2: "good"}
    adapted = train(kind.from_pretrained(base, id2label=labels), task_type=task_type)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "adapter")
    assert loaded.task == task
    assert loaded.labels == ["bad", "so so", "good"]
    assert not any("lora" in name for name, _ in loaded.module.named_modules())
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_brings_every_module_whose_name_ends_as_peft_saves_it(tmp_path: Path) -> None:
    """DistilBERT's ``pre_classifier`` ends with PEFT's own ``classifier``."""
    base = write(tmp_path / "base", tiny_encoder("distilbert", "classify").base_model)
    module = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapted = train(module, ["q_lin", "v_lin"], task_type="SEQ_CLS")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = adapted(IDS).logits
        torch.testing.assert_close(read(tmp_path / "adapter").module(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_for_questions_is_merged_with_its_head_whatever_labels_its_base_has(
    tmp_path: Path, bert: BertModel
) -> None:
    base = write(tmp_path / "base", bert)
    edit(base, "config.json", lambda config: config.update(id2label={"0": "a", "1": "b", "2": "c"}))
    adapted = train(AutoModelForQuestionAnswering.from_pretrained(base, num_labels=2), task_type="QUESTION_ANS")
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "adapter")
    assert (loaded.task, loaded.labels, loaded.architecture) == ("question-answering", [], "BertForQuestionAnswering")
    with torch.inference_mode():
        ours, theirs = loaded.module(IDS), adapted(IDS)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_loading_an_adapter_alarms_nobody_about_the_bases_missing_head(tmp_path: Path, bert: BertModel) -> None:
    base = write(tmp_path / "base", bert)
    train(AutoModelForSequenceClassification.from_pretrained(base), task_type="SEQ_CLS").save_pretrained(
        tmp_path / "adapter"
    )
    alarms: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: alarms.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    transformers_logging.set_verbosity_warning()
    read(tmp_path / "adapter")
    logging.getLogger("transformers").removeHandler(handler)
    assert alarms == []


def test_an_adapter_without_a_label_file_gets_numbered_labels_for_its_heads_width(
    tmp_path: Path, bert: BertModel
) -> None:
    base = write(tmp_path / "base", bert)
    train(AutoModelForSequenceClassification.from_pretrained(base, num_labels=5), task_type="SEQ_CLS").save_pretrained(
        tmp_path / "adapter"
    )
    (tmp_path / "adapter" / "config.json").unlink(missing_ok=True)
    assert read(tmp_path / "adapter").labels == [f"LABEL_{i}" for i in range(5)]


def test_an_adapters_head_replaces_the_bases_own_of_another_width(tmp_path: Path, bert: BertModel) -> None:
    base = write(tmp_path / "base", BertForSequenceClassification(BertConfig(**BERT, num_labels=2)))
    module = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4, ignore_mismatched_sizes=True)
    adapted = train(module, task_type="SEQ_CLS")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "adapter")
    assert len(loaded.labels) == 4
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("named", ["absolute", "relative to the adapter", "by the operator"])
def test_a_decoders_adapter_finds_its_base(tmp_path: Path, decoder: Path, named: str) -> None:
    adapted = train(AutoModelForCausalLM.from_pretrained(decoder))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    path = {"absolute": str(decoder), "relative to the adapter": "../decoder", "by the operator": "nowhere"}[named]
    edit(folder, "adapter_config.json", lambda c: c.update(base_model_name_or_path=path))
    loaded = read(folder, base=str(decoder) if named == "by the operator" else None, dtype="float32")
    assert loaded.task == "generate"
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_merge_is_done_in_float32_before_the_cast(tmp_path: Path, decoder: Path) -> None:
    adapted = train(AutoModelForCausalLM.from_pretrained(decoder))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().model.layers[1].self_attn.q_proj.weight
    loaded = read(tmp_path / "adapter", dtype="bfloat16").module
    assert torch.equal(loaded.model.layers[1].self_attn.q_proj.weight, merged.to(torch.bfloat16))
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("settings", [{"r": 4, "use_rslora": True}, {"r": 4, "use_dora": True}, {"bias": "all"}])
def test_each_kind_of_lora_is_merged_into_what_it_gave(tmp_path: Path, decoder: Path, settings: dict[str, Any]) -> None:
    check_merge(tmp_path, AutoModelForCausalLM.from_pretrained(decoder), decoder, ["q_proj", "down_proj"], **settings)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_delta_for_one_of_two_tied_weights_leaves_the_other(tmp_path: Path, target: str) -> None:
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = write(tmp_path / "base", base)
    check_merge(tmp_path, base, folder, ["q_proj", target])


def check_merge(
    tmp_path: Path, module: PreTrainedModel, base: Path, targets: list[str], **settings: Any
) -> LoadedModel:
    """The adapter, trained on ``module`` and saved, is served with the logits that it had."""
    torch.manual_seed(2)
    with warnings.catch_warnings(action="ignore"):  # PEFT's advice on tied and on resized weights
        adapted = get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **settings)).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape) * 0.05)
        adapted.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "adapter", base=str(base), dtype="float32")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)
    return loaded


def test_an_adapter_that_was_trained_with_new_tokens_brings_their_rows(tmp_path: Path, decoder: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(decoder)
    module.resize_token_embeddings(VOCAB_SIZE + 3, pad_to_multiple_of=64, mean_resizing=False)
    saved = ["embed_tokens", "lm_head"]
    loaded = check_merge(tmp_path, module, decoder, ["q_proj"], modules_to_save=saved)
    assert loaded.module.get_output_embeddings().weight.shape[0] == 448


def test_tokens_without_weights_get_no_random_ones(tmp_path: Path, decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(VOCAB_SIZE)])
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = check_merge(tmp_path, AutoModelForCausalLM.from_pretrained(decoder), decoder, ["q_proj"])
    assert loaded.module.get_input_embeddings().weight.shape[0] == VOCAB_SIZE


def test_an_adapter_is_refused_by_what_is_wrong_with_it(tmp_path: Path, decoder: Path, bert: BertModel) -> None:
    folder = tmp_path / "adapter"
    train(AutoModelForCausalLM.from_pretrained(decoder)).save_pretrained(folder)
    assert "does not fit its base" in refusal(folder, base=str(write(tmp_path / "bert", BertForMaskedLM(bert.config))))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[:-2]), folder / "adapter_model.safetensors")
    assert "lacks weights that its config names" in refusal(folder)
    edit(folder, "adapter_config.json", lambda c: c.update(base_model_name_or_path="some/hub-name"))
    assert "'some/hub-name'" in refusal(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in refusal(folder)
    edit(folder, "adapter_config.json", lambda c: c.update(peft_type="LOHA"))
    assert "holds a LOHA adapter" in refusal(folder)


@pytest.mark.parametrize("targets", [["query", "dense"], r"bert\.(.*\.)?(dense|value)"])
def test_a_usual_adapter_is_merged_as_peft_merges_it_and_without_it(
    tmp_path: Path, bert: BertModel, targets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base", bert)
    adapted = train(AutoModelForSequenceClassification.from_pretrained(base), task_type="SEQ_CLS", targets=targets)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload(safe_merge=True).state_dict()
    monkeypatch.setitem(sys.modules, "peft", None)
    merged = read(tmp_path / "adapter").module.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"init_lora_weights": "pissa"}, {"some_new_field": 1}])
def test_an_adapter_of_another_kind_is_left_to_peft(
    tmp_path: Path, bert: BertModel, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base", bert)
    train(AutoModelForSequenceClassification.from_pretrained(base), task_type="SEQ_CLS").save_pretrained(
        tmp_path / "adapter"
    )
    edit(tmp_path / "adapter", "adapter_config.json", lambda c: c.update(change))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="peft"):
        read(tmp_path / "adapter")


def test_a_base_is_for_adapters_only(decoder: Path) -> None:
    assert "holds no adapter" in refusal(decoder, base=str(decoder))


def test_an_ia3_adapter_is_merged_as_peft_merges_it(tmp_path: Path, decoder: Path) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(decoder), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "adapter", dtype="float32")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(IDS).logits, adapted(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_ia3_adapter_without_all_its_scales_is_refused(tmp_path: Path, decoder: Path) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(AutoModelForCausalLM.from_pretrained(decoder), config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    missing = min(weights)
    save_file({name: tensor for name, tensor in weights.items() if name != missing}, path)
    assert f"lacks weights that its config names: {missing}" in refusal(tmp_path / "adapter")
