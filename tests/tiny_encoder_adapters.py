"""Adapters of tiny encoders with heads of their own, trained by PEFT for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.tiny_adapters import quiet
from tests.tiny_encoders import FAMILIES, tiny_encoder, tiny_tokenizer

NUM_STEPS = 6
LEARNING_RATE = 0.03

HeadTask = Literal["classify", "ner", "question-answering"]

CLASSES: dict[str, Any] = {
    "classify": AutoModelForSequenceClassification,
    "ner": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
PEFT_TASKS = {"classify": "SEQ_CLS", "ner": "TOKEN_CLS", "question-answering": "QUESTION_ANS"}

LINEARS = {
    "bert": ["query", "key", "value", "dense"],
    "roberta": ["query", "key", "value", "output.dense", "intermediate.dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "modernbert": ["Wqkv", "mlp.Wi", "Wo"],
}

IA3_LAYERS = {
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "roberta": (["key", "value", "intermediate.dense"], ["intermediate.dense"]),
    "distilbert": (["k_lin", "v_lin", "lin2"], ["lin2"]),
    "modernbert": (["Wqkv", "mlp.Wo"], ["mlp.Wo"]),
}
"""Layers that are scaled, and those whose inputs are."""

BROUGHT = {"modernbert": ["head"]}
"""Modules that bases of the family lack beside the last layer, and that PEFT saves only where they are named."""

LORA: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "some layers": {"r": 3, "lora_alpha": 8, "layers_to_transform": [1]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "lora bias": {"r": 4, "lora_alpha": 8, "lora_bias": True, "use_rslora": True},
    "saved pooler": {"r": 4, "lora_alpha": 8, "modules_to_save": ["pooler", "classifier"]},
}

KINDS = (*(kind for kind in LORA if kind != "saved pooler"), "ia3")


def write_tiny_base(folder: Path, family: str) -> Path:
    """A model without a head; BERT's has a pooler."""
    tiny_encoder(family, "classify").base_model.save_pretrained(folder)
    tiny_tokenizer(FAMILIES[family][0]).save_pretrained(folder)
    return folder


def config_of(kind: str, family: str, task: HeadTask) -> LoraConfig | IA3Config:
    common: dict[str, Any] = {"task_type": PEFT_TASKS[task]}
    if brought := BROUGHT.get(family):
        last = "qa_outputs" if task == "question-answering" and family != "modernbert" else "classifier"
        common["modules_to_save"] = [*brought, last]
    if kind == "ia3":
        layers, feedforward = IA3_LAYERS[family]
        return IA3Config(target_modules=layers, feedforward_modules=feedforward, **common)
    return LoraConfig(target_modules=LINEARS[family], **{**LORA[kind], **common})


@quiet()
def write_encoder_adapter(
    folder: Path,
    base: Path,
    kind: str,
    family: str,
    task: HeadTask,
    labels: tuple[str, ...] = ("a", "b", "c"),
    seed: int = 0,
) -> Path:
    """An adapter of the model in ``base``, which it names as its base, with ``config.json`` for its labels."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_labels": 2}
    if task != "question-answering":
        options = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    module = CLASSES[task].from_pretrained(base, dtype=torch.float32, **options)
    model = get_peft_model(module, config_of(kind, family, task))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    for _ in range(NUM_STEPS):
        ids = torch.randint(5, module.config.vocab_size, (4, 20))
        optimizer.zero_grad()
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        logits = output.start_logits if task == "question-answering" else output.logits
        targets = torch.randint(0, logits.shape[-1], logits.shape[:-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False)
    module.config.save_pretrained(folder)
    return folder


@quiet()
def peft_logits(
    base: Path, adapter: Path, task: HeadTask, ids: list[int], num_labels: int, types: list[int] | None = None
) -> torch.Tensor:
    """The oracle: ``[L]`` of a text or ``[tokens, L]``."""
    module = CLASSES[task].from_pretrained(base, dtype=torch.float32, num_labels=num_labels)
    model = PeftModel.from_pretrained(module, adapter).eval()
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    if types is not None:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.inference_mode():
        output = model(**inputs)
    if task == "question-answering":
        return torch.stack((output.start_logits[0], output.end_logits[0]), dim=-1)
    return output.logits[0]
