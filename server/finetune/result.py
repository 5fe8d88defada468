"""Writes what was trained: weights, tokenizer, scores, the options and a model card."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from server import __version__
from server.finetune.card import model_card
from server.finetune.options import Options
from server.finetune.tasks import TrainedTask


def write_result(
    folder: Path, options: Options, task: TrainedTask, model: Any, tokenizer: Any, metrics: dict[str, Any]
) -> None:
    """Into ``folder``, which will be moved to ``options.out``: relative paths in it are seen from there."""
    out = Path(options.out)
    if options.merge:
        model = model.merge_and_unload(safe_merge=True)
    if options.method == "lora" and not options.merge:
        task_model = model.get_base_model()
        # Relative to the adapter's folder, so that both can be moved and committed together.
        relative = Path(os.path.relpath(Path(options.model).resolve(), out.resolve())).as_posix()
        config = model.peft_config["default"]
        config.base_model_name_or_path = relative
        # PEFT adds usual names of heads, which this model may not have.
        config.modules_to_save = sorted(
            set(config.modules_to_save or ()) & {name for name, _ in task_model.named_modules()}
        )
        model.save_pretrained(folder, save_embedding_layers=False)
        task_model.config.architectures = [type(task_model).__name__]
        task_model.config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    task.save(folder, tokenizer)
    record = {**asdict(options), "learning_rate": options.peak_learning_rate, "command": options.command()}
    versions = {
        "sluice": __version__,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
    if options.method == "lora":
        import peft

        versions["peft"] = peft.__version__
    _write_json(folder / "training_args.json", {**record, "versions": versions})
    _write_json(folder / "metrics.json", metrics)
    card = folder / "README.md"
    card.write_text(model_card(options, task, metrics, out.name, versions), encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        # safetensors makes files that only their owner may read; the server may be another user.
        shutil.copymode(card, weights)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
