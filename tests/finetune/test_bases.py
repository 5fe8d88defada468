"""Bases of many families, as their folders come: what is trained on them is served with the scores that it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from server.commands.planned import PlannedModel, plan_or_problem
from server.config import ModelConfig
from server.finetune.data import read_tags, read_texts
from server.finetune.options import Options
from server.finetune.splitting import split
from server.finetune.train import finetune
from server.models.loader import LoadedModel, load
from tests.finetune.bases import SIZES, write_base, write_reviews, write_sentences

torch.set_num_threads(1)


def trained(tmp_path: Path, task: Any, model_type: str, method: Any) -> dict[str, Any]:
    """The scores of one step of training; the result is in ``out``."""
    write_base(tmp_path / "base", model_type, for_words=True)
    data = (
        write_reviews(tmp_path / "data.csv", num_rows=80)
        if task == "classify"
        else write_sentences(tmp_path / "data.conll")
    )
    options = {"model": str(tmp_path / "base"), "data": str(data), "out": str(tmp_path / "out"), "max_steps": 2}
    return finetune(Options(task=task, method=method, learning_rate=1e-2, **options))


def loss(loaded: LoadedModel, folder: Path, text: str, targets: list[int]) -> float:
    """Mean over the targets, as training reports it: a label of the text, or one of each of its words."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        logits = loaded.module(**inputs).logits
    rows = logits if len(targets) == 1 and logits.dim() == 2 else logits[0, 1:-1]
    return torch.nn.functional.cross_entropy(rows, torch.tensor(targets)).item()


@pytest.mark.parametrize(
    ("model_type", "method"),
    [*((model_type, "lora") for model_type in SIZES), *((model_type, "full") for model_type in ("bert", "gpt2"))],
)
def test_a_classifier_is_served_with_the_loss_that_training_reports(tmp_path: Path, model_type: str, method: str):
    metrics = trained(tmp_path, "classify", model_type, method)
    model = ModelConfig(name="mood", path=str(tmp_path / "out"))
    assert isinstance(plan_or_problem(model), PlannedModel)
    loaded = load(model)
    held_out = split(read_texts(tmp_path / "data.csv").examples, validation_share=0.1, test_share=0.1, seed=0).test
    losses = [loss(loaded, tmp_path / "out", e.text, [loaded.labels.index(e.labels[0])]) for e in held_out]
    assert np.mean(losses) == pytest.approx(metrics["test"]["loss"], abs=2e-4)


@pytest.mark.parametrize("model_type", ["bert", "albert", "modernbert"])
def test_a_tagger_is_served_with_the_loss_that_training_reports(tmp_path: Path, model_type: str):
    metrics = trained(tmp_path, "ner", model_type, "lora")
    model = ModelConfig(name="names", path=str(tmp_path / "out"))
    assert isinstance(plan_or_problem(model), PlannedModel)
    loaded = load(model)
    held_out = split(read_tags(tmp_path / "data.conll").examples, validation_share=0.1, test_share=0.1, seed=0).test
    targets = [[loaded.labels.index(tag) for tag in e.tags] for e in held_out]
    losses = [loss(loaded, tmp_path / "out", e.text, t) for e, t in zip(held_out, targets, strict=True)]
    weights = [len(t) for t in targets]
    assert np.average(losses, weights=weights) == pytest.approx(metrics["test"]["loss"], abs=2e-2)


def test_a_pooler_that_no_file_has_is_saved_with_the_adapter(tmp_path: Path):
    trained(tmp_path, "classify", "bert", "lora")
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize("absent", ["bert.encoder.layer.1.output.dense.weight", "classifier.bias"])
def test_a_plan_refuses_the_weights_that_serving_would_miss(tmp_path: Path, absent: str):
    from safetensors.torch import load_file, save_file

    trained(tmp_path, "classify", "bert", "full")
    path = tmp_path / "out" / "model.safetensors"
    weights = load_file(path)
    del weights[absent]
    save_file(weights, path, metadata={"format": "pt"})
    problem = plan_or_problem(ModelConfig(name="mood", path=str(tmp_path / "out")))
    assert isinstance(problem, str)
    assert f"lack {absent}" in problem
