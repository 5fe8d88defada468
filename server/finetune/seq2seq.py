"""Trains an encoder-decoder model. It tokenises sources and generates outputs as the server does.

Dimension key
    N  examples
    T  tokens of the longest output
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from server.config import ModelConfig
from server.errors import ConfigurationError, InvalidRequest
from server.finetune.chrf import chrf
from server.finetune.directions import ROUTES, TrainedDirection, in_flags, trained_direction
from server.finetune.generation import generation_config, inherited
from server.finetune.options import Options
from server.finetune.parts import Part
from server.finetune.rewrites import RewriteExample, read_rewrites
from server.finetune.say import say
from server.finetune.tasks import IGNORED, TrainedTask
from server.models.describe import start_ids_of
from server.models.lengths import longest_input, longest_source
from server.models.tokenizer_files import tokenizer_files
from server.tasks import SEQ2SEQ
from server.text.languages import Direction
from server.text.source_tokens import cut, source_tokens
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.finetune.base import Base

DEFAULT_LENGTH = 256


@dataclass(frozen=True)
class EncodedRewrite:
    """The tokens of an example: the encoder reads ``ids``, the decoder learns to write ``labels``."""

    ids: list[int]
    labels: list[int]
    type_ids: tuple[int, ...] = ()

    @property
    def attention_mask(self) -> list[int]:
        return [1] * len(self.ids)


class Seq2Seq(TrainedTask):
    """Rewrites a text: a translation, a summary or whatever the data shows.

    The loss on the true outputs chooses the best epoch. chrF and exact match compare outputs that are generated with
    the generation config of the served model.
    """

    task = SEQ2SEQ
    best_score = "loss"
    greater_is_better = False
    shown = ("loss", "chrf", "exact_match")
    metrics = ("chrf", "exact_match")
    scores_epochs = False
    trainer_class = transformers.Seq2SeqTrainer
    arguments_class = transformers.Seq2SeqTrainingArguments
    more_arguments = {"predict_with_generate": True}  # noqa: RUF012
    tokenizer: Tokenizer
    trained: TrainedDirection
    generation: Any
    max_target_length: int

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base_config = ModelConfig(name="base", path=options.model)
        self.labels: list[str] = []
        self.pipeline_tag = ROUTES[options.route]
        outputs = f"at most {options.max_outputs} texts" if options.max_outputs else "all texts"
        self.length_note = (
            "Sources were cut at {max_length} tokens and targets at {max_target_length}. "
            f"chrf and exact_match were computed on {outputs} of each part."
        )

    @property
    def route(self) -> str:
        return f"/{self.options.route}"

    @property
    def direction(self) -> Direction:
        return self.trained.direction

    def read(self, path: Path) -> tuple[list[RewriteExample], list[str]]:
        return read_rewrites(path, self.options.source_column, self.options.target_column)

    def set_labels(self, examples: Iterable[RewriteExample]) -> None:
        self.sources = [example.source for example in examples]

    def config_fields(self) -> dict[str, Any]:
        return {}

    def prepare(self, base: Base) -> None:
        if base.new_modules:
            raise ConfigurationError(f"{self.options.model} lacks the weights of {', '.join(base.new_modules[:3])}.")
        folder, model = Path(self.options.model), base.model
        self.trained = trained_direction(self.options, base.tokenizer, self.sources)
        self.tokenizer = Tokenizer(
            tokenizer_files(base.tokenizer),
            model.get_output_embeddings().weight.shape[0],
            source_vocab_size=model.get_input_embeddings().weight.shape[0],
        )
        self.max_target_length = self._max_target_length(base)
        start_id = self.direction.decoder_start_id
        if start_id is None:
            (start_id,) = start_ids_of(folder, model.config, model.generation_config)
        self.start_id = start_id
        self.generation = generation_config(
            model.generation_config, self.options, self.direction, start_id, self.max_target_length, base.tokenizer
        )
        ends = self.generation.eos_token_id
        self.end_ids = [ends] if isinstance(ends, int) else list(ends)
        # The Trainer changes the one that it gets.
        model.generation_config = deepcopy(self.generation)
        model.config.task_specific_params = self.trained.task_params
        self.pad_id = model.config.pad_token_id or 0
        if found := inherited(self.generation):
            say(f"outputs are generated with the base's settings: {found}")

    def _max_target_length(self, base: Base) -> int:
        # The decoder reads one token before those of the output.
        limit = longest_input(self.base_config, base.model, base.tokenizer, self.task.name, None) - 1
        wanted = self.options.max_target_length
        if wanted > limit:
            raise ConfigurationError(f"--max-target-length is {wanted}: this base writes at most {limit} tokens.")
        if wanted == 1:
            raise ConfigurationError(
                "--max-target-length is 1: it must be at least 2, because the last token is the end token."
            )
        return wanted or min(DEFAULT_LENGTH, limit)

    def longest_input(self, model: Any, tokenizer: Any) -> int:
        return longest_source(self.base_config, model, tokenizer)

    def facts(self) -> dict[str, int]:
        return {"max_target_length": self.max_target_length}

    def encodings(
        self,
        examples: Sequence[Any],
        tokenizer: Any,  # noqa: ARG002
        max_length: int,
        part: str,
    ) -> list[tuple[Any, Any]]:
        self._check_room(max_length)
        try:
            found = [(example, *self._encoded(example)) for example in examples]
        except InvalidRequest as error:
            raise in_flags(error) from error
        self._report([each for _, each, _ in found], max_length, part)
        return [(example, self._cut(each, num_last, max_length)) for example, each, num_last in found]

    def _report(self, encoded: Sequence[EncodedRewrite], max_length: int, part: str) -> None:
        """Print how many texts will be cut, and how many have characters that become the unknown token."""
        for name, limit, lengths in (
            ("sources", max_length, [len(each.ids) for each in encoded]),
            ("targets", self.max_target_length, [len(each.labels) for each in encoded]),
        ):
            if number := sum(length > limit for length in lengths):
                say(f"{number} of {len(encoded)} {part} {name} are longer than {limit} tokens and are cut")
        unknown = self._unknown_id
        if number := sum(unknown in (*each.ids, *each.labels) for each in encoded if unknown is not None):
            say(f"{number} of {len(encoded)} {part} pairs have characters that the base's vocabulary lacks")

    def _cut(self, encoded: EncodedRewrite, num_last: int, max_length: int) -> EncodedRewrite:
        labels = cut(encoded.labels, 1, self.max_target_length)
        return EncodedRewrite(cut(encoded.ids, num_last, max_length), labels)

    def _check_room(self, max_length: int) -> None:
        _, ids, _ = source_tokens(self.tokenizer, self.direction, "")
        if len(ids) >= max_length:
            raise ConfigurationError(
                f"--max-length is {max_length}: the prefix and the special tokens alone need {len(ids)}. Set it higher."
            )

    def _encoded(self, example: RewriteExample) -> tuple[EncodedRewrite, int]:
        """The example before it is cut, and the number of special tokens at the end of its source."""
        _, ids, num_last = source_tokens(self.tokenizer, self.direction, example.source)
        text_ids = self.tokenizer.target.encode(example.target, add_special_tokens=False).ids
        return EncodedRewrite(ids, [*self._first_ids, *text_ids, self.end_ids[0]]), num_last

    @property
    def _first_ids(self) -> list[int]:
        """Tokens before the text of an output: its language, or the tokenizer's own."""
        forced = self.direction.forced_bos_id
        if forced is not None:
            return [forced]
        is_tagged = self.direction.prefix_ids is not None or self.direction.suffix_ids is not None
        return [] if is_tagged else self.tokenizer.target.files.prefix_ids

    @property
    def _unknown_id(self) -> int | None:
        token = self.tokenizer.files.unk_token
        return None if token is None else self.tokenizer.backend.token_to_id(token)

    def labelled(self, example: Any, encoding: EncodedRewrite) -> dict[str, Any]:  # noqa: ARG002
        return {"labels": encoding.labels, "decoder_input_ids": [self.start_id, *encoding.labels[:-1]]}

    def collator(self, tokenizer: Any) -> Any:  # noqa: ARG002
        filled = {"input_ids": self.pad_id, "attention_mask": 0, "labels": IGNORED, "decoder_input_ids": self.start_id}

        def collate(features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {
                name: pad_sequence([torch.tensor(each[name]) for each in features], True, value)
                for name, value in filled.items()
            }

        return collate

    def final_scores(self, trainer: Any, part: Part) -> dict[str, float]:
        loss = trainer.evaluate(part.features, metric_key_prefix="test")["test_loss"]
        if not math.isfinite(loss):
            raise self.options.diverged()
        chosen = part.spread(self.options.max_outputs)
        predicted = trainer.predict(chosen.features).predictions
        return {"loss": loss, **self.scores(chosen, predicted, None)}

    def scores(self, part: Part, logits: NDArray[Any], label_ids: Any) -> dict[str, float]:  # noqa: ARG002
        """``logits`` are the ids of the generated tokens: ``[N, T]``."""
        predicted = [self.text(row) for row in np.asarray(logits).tolist()]
        true = [example.target for example in part.examples]
        same = [wanted == found for wanted, found in zip(true, predicted, strict=True)]
        return {"chrf": chrf(true, predicted), "exact_match": sum(same) / len(same)}

    def text(self, row: list[int]) -> str:
        """The text of a generated output. ``row`` begins with the decoder's start token."""
        ids = [id_ for id_ in row[1:] if id_ != IGNORED]
        end = next((place for place, id_ in enumerate(ids) if id_ in self.end_ids), len(ids))
        return self.tokenizer.target.decode(ids[:end])

    def save(self, folder: Path, tokenizer: Any) -> None:  # noqa: ARG002
        self.trained.save_tokenizer(Path(self.options.model), folder)
        self.generation.save_pretrained(folder)
