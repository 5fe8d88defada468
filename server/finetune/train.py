"""Trains what `Options` say and writes a folder that `sluice serve` takes as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from server import __version__
from server.errors import EXIT_MODEL, ConfigurationError
from server.finetune.card import model_card
from server.finetune.data import Split, split
from server.finetune.options import Options
from server.finetune.tasks import TASKS, Task
from server.models.configs import positive

DEFAULT_MAX_LENGTH = 256
LINEARS = (nn.Linear, Conv1D)
"""Layers that LoRA adapts."""


def finetune(options: Options) -> dict[str, Any]:
    """Read, train, score on the held-out part, write. The scores as in metrics.json."""
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} is there already. Choose another --out, or remove it.")
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task = TASKS[options.task](options)
    parts = _read(task, options)
    transformers.set_seed(options.seed)
    tokenizer, model, new_modules = _load_base(task, options)
    _say(f"{len(parts.train)} examples to train on, {len(parts.validation)} to choose by, {len(parts.test)} held out")
    _say(f"labels: {', '.join(task.labels)}")
    if new_modules:
        _say(f"new weights, which the base does not have: {', '.join(new_modules)}")
    if options.method == "lora":
        model = _with_lora(task, model, new_modules, options)
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    _say(f"{num_trained:,} of {model.num_parameters():,} weights are trained")

    checkpoints = out / ".checkpoints"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be made: {error.strerror}. Choose another --out.") from None
    try:
        metrics = _train(task, model, tokenizer, parts, options, checkpoints)
    finally:
        shutil.rmtree(checkpoints, ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()
    _save(out, options, task, model, tokenizer, metrics)
    _say(f"held out: {task.best_score} {metrics['test'][task.best_score]:.4f}. Written to {out}")
    return metrics


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _read(task: Task, options: Options) -> Split:
    examples = task.read(Path(options.data))
    task.set_labels(examples)
    if options.eval_data is None:
        shares = {"validation_share": options.validation_share, "test_share": options.test_share}
        return split(examples, **shares, seed=options.seed)
    parts = split(examples, validation_share=options.validation_share, test_share=0, seed=options.seed)
    return Split(train=parts.train, validation=parts.validation, test=task.read(Path(options.eval_data)))


def _load_base(task: Task, options: Options) -> tuple[Any, Any, list[str]]:
    """Tokenizer, float32 model, and the modules whose weights are new because no file of the base has them.

    A head for the same number of labels is kept.
    """
    if not Path(options.model).is_dir():
        raise ConfigurationError(
            f"There is no folder {options.model}. Give --model a Hugging Face model folder "
            "(from a hub: hf download NAME --local-dir FOLDER).",
            exit_code=EXIT_MODEL,
        )
    if (Path(options.model) / "adapter_config.json").exists():
        raise ConfigurationError(f"{options.model} is an adapter. Give --model the folder of its base.")
    labels = dict(enumerate(task.labels))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        model, info = task.model_class.from_pretrained(
            options.model,
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            problem_type=task.problem_type,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"{options.model} cannot be loaded as a base ({reason}). "
            "Give --model a Hugging Face model folder with config.json, safetensors and tokenizer.json.",
            exit_code=EXIT_MODEL,
        ) from error
    if not tokenizer.is_fast:
        raise ConfigurationError(f"{options.model} has no tokenizer.json.", exit_code=EXIT_MODEL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    return tokenizer, model, sorted({name.rpartition(".")[0] for name in absent})


def _with_lora(task: Task, model: Any, new_modules: Sequence[str], options: Options) -> Any:
    """LoRA on every linear layer of the body; the head and what is new are trained whole and saved with the adapter."""
    import peft

    body = model.base_model_prefix
    linears = {name: module for name, module in model.base_model.named_modules() if type(module) in LINEARS}
    names = {name.rpartition(".")[2] for name in linears}
    if not names or model.base_model is model:
        raise ConfigurationError(
            f"{options.model} has no linear layers that LoRA could adapt. Use --method full.", exit_code=EXIT_MODEL
        )
    saved = _saved_whole(model, new_modules)
    if body in saved or "" in saved:
        raise ConfigurationError(
            f"{options.model} lacks weights that LoRA cannot train one by one. Use --method full.", exit_code=EXIT_MODEL
        )
    config = peft.LoraConfig(
        task_type=task.peft_type,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha or 2 * options.lora_rank,
        lora_dropout=options.lora_dropout,
        target_modules=_targets(body, names, saved),
        modules_to_save=saved,
        fan_in_fan_out=any(type(module) is Conv1D for module in linears.values()),
    )
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, config)


def _saved_whole(model: Any, new_modules: Sequence[str]) -> list[str]:
    """The modules beside the body, and what is new inside of it, such as a pooler."""
    body = model.base_model_prefix
    heads = [name for name, child in model.named_children() if name != body and any(True for _ in child.parameters())]
    inside = [name for name in new_modules if name.partition(".")[0] not in heads]
    return [*heads, *inside]


def _targets(body: str, names: Set[str], saved: Sequence[str]) -> str:
    """A pattern for the body's linear layers, but those that are saved whole.

    Anchored at the body: a head may have a layer of the same name.
    """
    inside = "".join(rf"(?!{re.escape(name)}(\.|$))" for name in saved if name.startswith(f"{body}."))
    return rf"{inside}{body}\.(.*\.)?({'|'.join(sorted(names))})"


def _max_length(model: Any, options: Options) -> int:
    limit: int = positive(getattr(model.config, "max_position_embeddings", None)) or DEFAULT_MAX_LENGTH
    for name, module in model.named_modules():
        # RoBERTa's kind counts positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit -= module.padding_idx + 1
    if options.max_length > limit:
        raise ConfigurationError(f"--max-length is {options.max_length}: this base takes at most {limit} tokens.")
    return options.max_length or min(DEFAULT_MAX_LENGTH, limit)


def _features(task: Task, examples: Sequence[Any], tokenizer: Any, max_length: int, part: str) -> list[dict[str, Any]]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    encodings = backend.encode_batch([example.text for example in examples])
    if num_cut := sum(len(encoding.ids) > max_length for encoding in encodings):
        _say(f"{num_cut} of {len(encodings)} {part} texts are longer than {max_length} tokens and are cut")
    backend.enable_truncation(max_length)
    encodings = backend.encode_batch([example.text for example in examples])
    backend.no_truncation()
    return [task.feature(example, encoding) for example, encoding in zip(examples, encodings, strict=True)]


class _Bar(ProgressCallback):  # type: ignore[misc]
    """The Trainer's bar without the dictionaries that it prints."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


class _Lines(TrainerCallback):  # type: ignore[misc]
    """One line per validation; where there is no bar, one now and then between."""

    def __init__(self, best_score: str) -> None:
        self.best_score = best_score

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if args.disable_tqdm and "loss" in logs:
            _say(f"step {state.global_step} of {state.max_steps}: training loss {logs['loss']:.4f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        score, loss = metrics[f"eval_{self.best_score}"], metrics["eval_loss"]
        _say(f"epoch {state.epoch:.3g}: validation loss {loss:.4f}, {self.best_score} {score:.4f}")


def _train(task: Task, model: Any, tokenizer: Any, parts: Split, options: Options, checkpoints: Path) -> dict[str, Any]:
    max_length = _max_length(model, options)
    train, validation, test = (
        _features(task, getattr(parts, part), tokenizer, max_length, part) for part in ("train", "validation", "test")
    )
    is_terminal = sys.stderr.isatty()
    steps_per_epoch = -(-len(train) // options.batch_size)
    num_steps = options.max_steps or round(options.epochs * steps_per_epoch)
    arguments = transformers.TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.peak_learning_rate,
        warmup_steps=round(options.warmup * num_steps),
        weight_decay=options.weight_decay,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(32, options.batch_size),
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="steps",
        logging_steps=max(1, num_steps // 20),
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.best_score,
        greater_is_better=True,
        seed=options.seed,
        disable_tqdm=not is_terminal,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=task.collator(tokenizer),
        compute_metrics=lambda prediction: task.scores(np.asarray(prediction.predictions), prediction.label_ids),
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=options.patience)],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Lines(task.best_score))
    if is_terminal:
        trainer.add_callback(_Bar)
    outcome = trainer.train()
    trainer.remove_callback(_Lines)
    return {
        "validation": _scores(trainer.predict(validation).metrics),
        "test": _scores(trainer.predict(test).metrics),
        "num_train": len(train),
        "num_validation": len(validation),
        "num_test": len(test),
        "epochs": round(float(trainer.state.epoch), 2),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "train_runtime_s": round(outcome.metrics["train_runtime"], 1),
        "max_length": max_length,
    }


def _scores(metrics: dict[str, float]) -> dict[str, float]:
    scores = {name.removeprefix("test_"): round(float(value), 4) for name, value in metrics.items()}
    return {name: value for name, value in scores.items() if not name.endswith(("runtime", "per_second", "_time"))}


def _save(out: Path, options: Options, task: Task, model: Any, tokenizer: Any, metrics: dict[str, Any]) -> None:
    task_model = model
    if options.method == "lora":
        task_model = model.get_base_model()
        # Relative to the adapter's folder, so that both can be moved and committed together.
        relative = Path(os.path.relpath(Path(options.model).resolve(), out.resolve())).as_posix()
        config = model.peft_config["default"]
        config.base_model_name_or_path = relative
        # PEFT adds usual names of heads, which this model may not have.
        config.modules_to_save = sorted(set(config.modules_to_save) & {name for name, _ in task_model.named_modules()})
        model.save_pretrained(out, save_embedding_layers=False)
        task_model.config.architectures = [type(task_model).__name__]
        task_model.config.save_pretrained(out)
    else:
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {**asdict(options), "learning_rate": options.peak_learning_rate, "command": options.command()}
    versions = {
        "sluice": __version__,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
    if options.method == "lora":
        import peft

        versions["peft"] = peft.__version__
    _write_json(out / "training_args.json", {**record, "versions": versions})
    _write_json(out / "metrics.json", metrics)
    card = out / "README.md"
    card.write_text(model_card(options, task, metrics, out.name, versions), encoding="utf-8")
    for weights in out.glob("*.safetensors"):
        # safetensors makes files that only their owner may read; the server may be another user.
        shutil.copymode(card, weights)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
