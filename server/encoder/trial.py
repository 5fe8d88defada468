"""A few texts that every way through a module has to answer as the module answers each of them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.encoder.forward import Forward, PaddedForward
from server.encoder.grouping import ONE_BY_ONE
from server.errors import EXIT_MODEL, ConfigurationError
from server.modules.unsupported import FORWARD_FAILURES
from server.out_of_memory import raise_if_memory
from server.protocol import Encode

LENGTHS = (3, 40, 41, 41, 41, 150)
"""Of the texts. The last is longer than the usual windows of local attention; two go together in every grouping."""

EXTRA_END = 4
"""The text that holds an end token inside: of three of equal length, two have the same number of end tokens."""

MAX_LENGTH = 1024
"""Of texts that are tried because a config names a switch: longer ones would take too long at load."""

TOLERANCES = {torch.float32: 1e-4}
COARSE_TOLERANCE = 5e-2
"""Largest difference from each text alone, as a part of the largest logit or of 1."""

SWITCHES = (
    "window", "local_attention", "chunk_length", "block_size", "distance", "max_relative", "segment",
    "original_max_position",
)  # fmt: skip
"""Parts of the names of config fields that are lengths from which on a model computes in another way."""


@dataclass(frozen=True)
class Frame:
    """What the model's tokenizer puts around a text: every real text begins and ends like this."""

    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()
    has_types: bool = False
    """Whether it gives token types."""

    def around(self, token_ids: Sequence[int]) -> list[int]:
        return [*self.prefix, *token_ids, *self.suffix]


@dataclass(frozen=True)
class Trial:
    """The texts, and the logits of each of them alone."""

    batch: Sequence[Encode]
    alone: Sequence[Tensor]
    switches: Sequence[int] = ()
    """Lengths from which on the module computes in another way, in order."""

    @property
    def unchecked_switch(self) -> int | None:
        """The first switch that no text of the trial is longer than."""
        longest = max(len(command.token_ids) for command in self.batch)
        return next((length for length in self.switches if length >= longest), None)

    @property
    def checked_lengths(self) -> list[int | None]:
        """Lengths up to which padding can be tried, the greatest first; None is any length."""
        unchecked = self.unchecked_switch
        crossed = [length for length in self.switches if unchecked is None or length < unchecked]
        # Shorter ones would leave too few texts to compare.
        return [unchecked, *(length for length in reversed(crossed) if length >= LENGTHS[-1])]

    @property
    def is_of_texts(self) -> bool:
        """Whether each text has one row of logits, rather than one for each token."""
        return self.alone[0].dim() == 1

    def problem(self, logits: Tensor) -> str | None:
        """How the batch's logits differ from each text's alone; None where they do not."""
        tolerance = TOLERANCES.get(logits.dtype, COARSE_TOLERANCE)
        for ours, alone in zip(logits, self.alone, strict=True):
            if ours.dim() != alone.dim():
                return "its output has another shape"
            ours, alone = ours[: len(alone)].float(), alone.float()
            # A text that the model cannot answer at all is no reason to change how the others run.
            is_lost = ~(ours.isfinite() | alone.isfinite())
            worst = float((ours - alone).abs().masked_fill(is_lost, 0).max())
            if not worst <= tolerance * max(1.0, float(alone.abs().nan_to_num(0.0, 0.0).max())):
                return f"its logits differ by {worst:.2g} from those of each text alone"
        return None


def run_alone(yardstick: PaddedForward, frame: Frame, max_model_len: int) -> Trial:
    """Raise ConfigurationError where the module cannot run a text of some length at all."""
    assert yardstick.grouping is ONE_BY_ONE
    switches = [length for length in _switches(yardstick.module.config.get_text_config()) if length < max_model_len]
    tried = [length for length in switches if length < MAX_LENGTH]
    lengths = (*LENGTHS, *(length + 1 for length in tried if length >= LENGTHS[-1]))
    batch = _texts(yardstick, frame, [min(length, max_model_len) for length in lengths])
    return Trial(batch, [_alone(yardstick, command) for command in batch], switches)


@torch.inference_mode()
def _alone(forward: Forward, command: Encode) -> Tensor:
    try:
        logits: Tensor = forward.logits([command])[0]
    except FORWARD_FAILURES as error:
        raise_if_memory(error)
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        kind, length = forward.module.config.model_type, len(command.token_ids)
        raise ConfigurationError(
            f"This {kind} model cannot run a text of {length} tokens ({line}). Serve another model.",
            exit_code=EXIT_MODEL,
        ) from error
    return logits


def _switches(config: Any) -> list[int]:
    """Lengths at which the config says that the model begins to compute in another way, in order.

    >>> from types import SimpleNamespace
    >>> _switches(SimpleNamespace(local_attention=128, attention_window=[64, 256], window_size=None))
    [64, 128, 256]
    """
    fields = list(_fields(vars(config)))
    lengths = {length for name, value in fields for length in _lengths(name, value)}
    if ("rope_type", "dynamic") in fields:
        # Longer texts rotate by factors of their own, which a padded batch takes from its longest text.
        lengths.add(config.max_position_embeddings)
    if getattr(config, "attention_type", None) == "block_sparse":
        # BigBird's kind attends in full to texts of up to so many blocks.
        lengths.add((5 + 2 * config.num_random_blocks) * config.block_size)
    return sorted(lengths)


def _fields(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _fields({str(key): entry for key, entry in value.items()})
        else:
            yield name, value


def _lengths(name: str, value: Any) -> Iterator[int]:
    if not any(part in name for part in SWITCHES):
        return
    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, int | float) and not isinstance(entry, bool) and 0 < entry < math.inf:
            yield int(entry)


def _texts(forward: Forward, frame: Frame, lengths: Sequence[int]) -> list[Encode]:
    """Random tokens in the frame of real texts; some hold what texts hold rarely."""
    config = forward.module.config
    padding_id, end_ids = getattr(config, "pad_token_id", None), end_tokens(config)
    vocab_size = forward.module.get_input_embeddings().weight.shape[0]
    outer = {*frame.prefix, *frame.suffix, *end_ids}
    inner = [token for token in range(vocab_size) if token not in outer]
    generator = torch.Generator().manual_seed(0)
    num_framed = len(frame.around([]))
    batch = []
    for number, length in enumerate(lengths):
        drawn = torch.randint(len(inner), (max(length - num_framed, 1),), generator=generator).tolist()
        content = [inner[place] for place in drawn]
        # Some models count their positions without padding tokens, and some pool at the last end token.
        if len(content) > 9 and _is_token(padding_id, vocab_size):
            content[7] = padding_id
        if len(content) > 9 and number == EXTRA_END and end_ids and _is_token(end_ids[0], vocab_size):
            content[3] = end_ids[0]
        token_ids = frame.around(content)
        batch.append(Encode(str(number), token_ids, _types(forward, frame, number, len(token_ids))))
    return batch


def end_tokens(config: Any) -> list[int]:
    """The config's end tokens: it may name none, one or several."""
    ends = getattr(config, "eos_token_id", None)
    return [end for end in (ends if isinstance(ends, list | tuple) else [ends]) if isinstance(end, int)]


def _is_token(value: Any, vocab_size: int) -> bool:
    return isinstance(value, int) and 0 <= value < vocab_size


def _types(forward: Forward, frame: Frame, number: int, length: int) -> list[int] | None:
    """Of every third text's second half 1, as of a pair."""
    if not frame.has_types or not forward.num_token_types:
        return None
    second = length // 2 if number % 3 == 2 and forward.num_token_types > 1 else 0
    return [0] * (length - second) + [1] * second
