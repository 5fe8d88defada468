"""Every option of `sluice finetune`: the command line, the record in training_args.json and the card's command."""

from __future__ import annotations

import argparse
import math
import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from server.errors import ConfigurationError


def _option(default: Any, description: str, *tasks: str) -> Any:
    """``tasks`` are those that support it; if none is named, all do."""
    return field(default=default, metadata={"help": description, "tasks": tasks})


NOT_NEGATIVE = (
    "max_length", "max_target_length", "max_steps", "threads", "lora_alpha", "weight_decay", "seed", "num_beams",
    "max_outputs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """One training run. Paths stay as the user wrote them, so that the recorded command can be repeated."""

    task: str
    """A key of `tasks.TRAININGS`."""
    model: str = field(metadata={"help": "base: a Hugging Face model folder with safetensors"})
    data: str = field(metadata={"help": "training data"})
    out: str = field(metadata={"help": "output folder, new or empty; the same command resumes an interrupted run"})
    eval_data: str | None = _option(None, "held-out data; without it a share of --data is held out")
    method: Literal["lora", "full"] = _option("lora", "train an adapter and the head, or all weights")
    epochs: float = _option(3.0, "maximum number of epochs")
    learning_rate: float | None = _option(None, "peak learning rate; default 5e-4 for lora, 5e-5 for full")
    batch_size: int = _option(16, "examples per training step")
    max_length: int = _option(0, "maximum tokens of a text; default 256, or the model's limit if smaller")
    max_target_length: int = _option(
        0, "maximum tokens of a target and of a served output; default as --max-length", "seq2seq"
    )
    seed: int = _option(0, "seed of the split, the new weights and the order")
    max_steps: int = _option(0, "maximum number of training steps; 0 disables")
    patience: int = _option(2, "epochs without a better validation score before training stops")
    warmup: float = _option(0.06, "share of the steps used for warm-up")
    weight_decay: float = _option(0.01, "AdamW's weight decay")
    validation_share: float = _option(0.1, "share of --data used to choose the best epoch")
    test_share: float = _option(0.1, "share of --data held out for the final scores")
    lora_rank: int = _option(16, "rank of the adapter's matrices")
    lora_alpha: int = _option(0, "scale of the adapter; default twice the rank")
    lora_dropout: float = _option(0.05, "dropout before the adapter's matrices")
    merge: bool = _option(False, "write a full model, with the adapter merged into the base")
    text_column: str | None = _option(None, "default: text (classify), tokens (ner, JSONL)", "classify", "ner")
    label_column: str | None = _option(None, "default: label (classify), ner_tags (ner, JSONL)", "classify", "ner")
    text_pair_column: str | None = _option(None, "second text of a pair; default: text_pair, if it exists", "classify")
    label_names: str | None = _option(
        None, "names of numbered labels, in order: O,B-PER,I-PER, or a file, one a line", "classify", "ner"
    )
    source_column: str = _option("source", "column of the texts that the model reads", "seq2seq")
    target_column: str = _option("target", "column of the texts that the model writes", "seq2seq")
    src_lang: str | None = _option(None, "language of the sources", "seq2seq")
    tgt_lang: str | None = _option(None, "language of the targets", "seq2seq")
    prefix: str | None = _option(None, "text before every source, in training and when served", "seq2seq")
    route: Literal["translate", "summarize"] = _option("translate", "the route that adds the prefix", "seq2seq")
    num_beams: int = _option(0, "beams for scores and serving; default: the base's", "seq2seq")
    max_outputs: int = _option(500, "maximum number of texts to generate for each score; 0 means all", "seq2seq")
    threads: int = _option(0, "CPU threads; 0 uses all that the process may use")
    base_model_id: str | None = _option(None, "public name of the base, for the model card")
    dataset: str | None = _option(None, "name of the data, for the model card")
    license: str = _option("unknown", "licence of the result, for the model card")

    def __post_init__(self) -> None:
        for name in ("validation_share", "test_share"):
            self._require(name, 0 < getattr(self, name) < 0.5, "must be above 0 and below 0.5")
        for name in ("batch_size", "patience", "lora_rank"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, "must be at least 0")
        for item in fields(self)[1:]:
            tasks = item.metadata.get("tasks")
            if tasks and self.task not in tasks and getattr(self, item.name) != item.default:
                raise ConfigurationError(
                    f"{self.task} does not support {flag(item.name)}, which is for {' and '.join(tasks)}."
                )
        if self.merge and self.method != "lora":
            raise ConfigurationError(f"--merge requires --method lora: --method {self.method} has no adapter to merge.")
        for name in ("warmup", "lora_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        for name in ("epochs", "learning_rate", "weight_decay"):
            self._require(name, math.isfinite(getattr(self, name) or 0.0), "must be a number")
        self._require("epochs", self.epochs > 0, "must be above 0")
        self._require("learning_rate", self.learning_rate is None or self.learning_rate > 0, "must be above 0")
        self._require("seed", self.seed < 2**32, "must be below 4294967296")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigurationError(f"{flag(name)} is {getattr(self, name)}: it {rule}.")

    @property
    def peak_learning_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-4 if self.method == "lora" else 5e-5

    def diverged(self) -> ConfigurationError:
        return ConfigurationError(
            "Training diverged: the model's outputs are not finite numbers. "
            f"Lower --learning-rate, which is {self.peak_learning_rate:g}."
        )

    @classmethod
    def from_arguments(cls, args: Namespace) -> Options:
        return cls(**{item.name: getattr(args, item.name) for item in fields(cls)})

    def command(self) -> str:
        """The shell command that repeats this run.

        >>> Options(task="ner", model="base", data="a b.conll", out="tagger", seed=7).command()
        "sluice finetune ner --model base --data 'a b.conll' --out tagger --seed 7"
        """
        words = ["sluice", "finetune", self.task]
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value is True:
                words.append(flag(item.name))
            elif value != item.default:
                words += [flag(item.name), f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)


def flag(name: str) -> str:
    """
    >>> flag("eval_data")
    '--eval-data'
    """
    return "--" + name.replace("_", "-")


def arguments(task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flag and ``add_argument`` keywords of every option but the task. The help hides options of other tasks."""
    hints = get_type_hints(Options)
    for item in fields(Options)[1:]:
        kinds = [kind for kind in getattr(hints[item.name], "__args__", (hints[item.name],)) if kind is not type(None)]
        choices = [kind for kind in kinds if isinstance(kind, str)]
        required = item.name in ("model", "data", "out")
        keywords: dict[str, Any] = {"dest": item.name, "help": item.metadata["help"], "required": required}
        if kinds == [bool]:
            keywords |= {"action": "store_true"}
        else:
            keywords |= {"choices": choices} if choices else {"type": kinds[0]}
        if not required:
            keywords["default"] = item.default
            if item.default not in (None, 0):
                keywords["help"] += " (default: %(default)s)"
        tasks = item.metadata.get("tasks")
        if tasks and task not in tasks:
            keywords["help"] = argparse.SUPPRESS
        yield flag(item.name), keywords
