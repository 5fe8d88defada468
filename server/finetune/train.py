"""Trains what `Options` say and writes a folder that `sluice serve` takes as it is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from server.finetune.base import Base, load_base, max_length, with_lora
from server.finetune.options import Options
from server.finetune.parts import Part, encode
from server.finetune.result import write_result
from server.finetune.say import say
from server.finetune.splitting import Split, split, without_texts_of
from server.finetune.tasks import TrainedTask
from server.finetune.workspace import STATE, Workspace
from server.tasks import TRAININGS

TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def finetune(options: Options) -> dict[str, Any]:
    """Read, train, score on the held-out part, write. The scores as in metrics.json.

    Whatever ends it early leaves the checkpoints beside ``out``, and the same options go on from the last of them.
    """
    workspace = Workspace(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task: TrainedTask = resolve_name(TRAININGS[options.task].trainer)(options)
    parts = _read(task, options)
    transformers.set_seed(options.seed)
    base = load_base(task, options)
    task.prepare(base)
    say(f"{len(parts.train)} examples to train on, {len(parts.validation)} to choose by, {len(parts.test)} held out")
    if task.labels:
        say(f"labels: {', '.join(task.labels)}")
    if base.new_modules:
        say(f"new weights, which the base does not have: {', '.join(base.new_modules)}")
    if options.method == "lora":
        base = replace(base, model=with_lora(task, base, options))
    num_trained = sum(weight.numel() for weight in base.model.parameters() if weight.requires_grad)
    say(f"{num_trained:,} of {base.model.num_parameters():,} weights are trained")
    length = max_length(task, base.model, base.tokenizer, options)
    with workspace.opened():
        metrics = _train(task, base, encode(task, parts, base.tokenizer, length), options, workspace)
        metrics |= {"max_length": length, **task.facts()}
        write_result(workspace.result, options, task, base.model, base.tokenizer, metrics)
    scores = ", ".join(f"{name} {metrics['test'][name]:.4f}" for name in task.shown or (task.best_score,))
    say(f"held out: {scores}. Written to {options.out}")
    return metrics


def _read(task: TrainedTask, options: Options) -> Split:
    examples = _examples(task, options.data)
    test = None if options.eval_data is None else _examples(task, options.eval_data)
    if test is not None:
        num_read, examples = len(examples), without_texts_of(examples, test)
        if number := num_read - len(examples):
            say(f"{number} examples of {options.data} are not trained on: {options.eval_data} has their texts")
    task.set_labels(examples)
    if test is None:
        shares = {"validation_share": options.validation_share, "test_share": options.test_share}
        return split(examples, **shares, seed=options.seed)
    parts = split(examples, validation_share=options.validation_share, test_share=0, seed=options.seed)
    return replace(parts, test=test)


def _examples(task: TrainedTask, path: str) -> list[Any]:
    examples, notes = task.read(Path(path))
    say("; ".join([f"{path}: {len(examples)} examples", *notes]))
    return examples


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
            say(f"step {state.global_step} of {state.max_steps}: training loss {logs['loss']:.4f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:  # noqa: ARG002
        names = dict.fromkeys(["loss", self.best_score])
        scores = ", ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in names)
        say(f"epoch {state.epoch:.3g}: validation {scores}")


def _train(
    task: TrainedTask, base: Base, parts: dict[str, Part], options: Options, workspace: Workspace
) -> dict[str, Any]:
    train, validation, test = (parts[name] for name in ("train", "validation", "test"))
    scored = validation

    def compute(prediction: Any) -> dict[str, float]:
        logits = np.asarray(prediction.predictions)
        if not np.isfinite(logits).all():
            raise options.diverged()
        return task.scores(scored, logits, prediction.label_ids)

    checkpoint = workspace.last_checkpoint()
    trainer = task.trainer_class(
        model=base.model,
        args=_arguments(task, options, len(train.features), workspace, _stopped_at(checkpoint, options.patience)),
        train_dataset=train.features,
        eval_dataset=validation.features,
        data_collator=task.collator(base.tokenizer),
        compute_metrics=compute if task.scores_epochs else None,
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=options.patience)],
    )
    # In the order of the data, which is by length already: scores are computed from the texts.
    trainer._get_eval_sampler = SequentialSampler
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Lines(task.best_score))
    if sys.stderr.isatty():
        trainer.add_callback(_Bar)
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.remove_callback(_Lines)
    validation_scores = _scores(task.final_scores(trainer, validation))
    scored = test
    return {
        "validation": validation_scores,
        "test": _scores(task.final_scores(trainer, test)),
        "num_train": train.num_examples,
        "num_validation": validation.num_examples,
        "num_test": test.num_examples,
        "epochs": round(float(trainer.state.epoch), 2),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "train_runtime_s": round(outcome.metrics["train_runtime"], 1),
    }


def _stopped_at(checkpoint: str | None, patience: int) -> int:
    """The step at which the run had stopped early when it was ended; 0 if it had not."""
    if checkpoint is None:
        return 0
    state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
    stopping = state.stateful_callbacks[transformers.EarlyStoppingCallback.__name__]
    has_stopped = stopping["attributes"]["early_stopping_patience_counter"] >= patience
    return int(state.global_step) if has_stopped else 0


def _arguments(task: TrainedTask, options: Options, num_examples: int, workspace: Workspace, stopped_at: int) -> Any:
    steps_per_epoch = -(-num_examples // options.batch_size)
    num_steps = options.max_steps or round(options.epochs * steps_per_epoch)
    return task.arguments_class(
        output_dir=str(workspace.checkpoints),
        num_train_epochs=options.epochs,
        max_steps=stopped_at or options.max_steps or -1,
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
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=task.best_score,
        greater_is_better=task.greater_is_better,
        seed=options.seed,
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        restore_callback_states_from_checkpoint=True,
        **task.more_arguments,
    )


def _scores(metrics: dict[str, float]) -> dict[str, float]:
    """Without the Trainer's timings."""
    scores = {name.removeprefix("test_"): round(float(value), 4) for name, value in metrics.items()}
    return {name: value for name, value in scores.items() if name not in TIMINGS}
