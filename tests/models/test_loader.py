"""Folders become models with the right facts, or are refused in one sentence that names the folder."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils import logging as transformers_logging

from server.config import ModelConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.models.loader import LoadedModel, load
from tests.tiny_models import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    EOS_ID,
    MAX_MODEL_LEN,
    VOCAB_SIZE,
    tiny_config,
    tiny_tokenizer,
    write_tiny_decoder,
)

torch.set_num_threads(1)

BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.tensor([[5, 9, 77, 130, 6]])


def read(path: Path, **settings: Any) -> LoadedModel:
    return load(ModelConfig(name="tiny", path=str(path), **settings))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        read(path, **settings)
    assert error.value.exit_code == EXIT_MODEL
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def write(folder: Path, module: PreTrainedModel) -> Path:
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    return write_tiny_decoder(tmp_path / "decoder", "llama")


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A base without any head."""
    torch.manual_seed(1)
    return BertModel(BertConfig(**BERT))


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
    assert loaded.weight_bytes == 4 * loaded.num_parameters
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


def test_robertas_position_table_is_longer_than_its_longest_input(tmp_path: Path) -> None:
    config = RobertaConfig(**{**BERT, "max_position_embeddings": 66}, pad_token_id=1)
    assert read(write(tmp_path, RobertaForSequenceClassification(config))).max_model_len == 64


def test_a_shorter_limit_can_be_set_and_a_longer_one_is_refused(decoder: Path) -> None:
    assert read(decoder, max_model_len=100).max_model_len == 100
    assert "is 5000 and the model has 512 positions" in refusal(decoder, max_model_len=5000)


def train(module: PreTrainedModel, **settings: Any) -> PeftModel:
    """An adapter whose products and head are far from doing nothing."""
    targets = ["query", "value"] if "task_type" in settings else ["q_proj", "v_proj"]
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
    edit(folder, "adapter_config.json", lambda c: c.update(peft_type="IA3"))
    assert "IA3" in refusal(folder)


def test_a_headless_base_alone_is_refused_by_its_architecture(tmp_path: Path, bert: BertModel) -> None:
    assert "holds BertModel, which no route serves" in refusal(write(tmp_path, bert))


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


def test_a_base_is_for_adapters_only(decoder: Path) -> None:
    assert "holds no adapter" in refusal(decoder, base=str(decoder))
