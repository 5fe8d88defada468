"""Examples as the model takes them, and as they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.finetune.say import say
from server.finetune.splitting import Split

if TYPE_CHECKING:
    from server.finetune.tasks import TrainedTask


@dataclass(frozen=True)
class Part:
    """One part of the data; all lists are in the same order."""

    examples: list[Any]
    encodings: list[Any]
    """Each a ``tokenizers.Encoding``, cut at the greatest length."""
    features: list[dict[str, Any]]


def encode(task: TrainedTask, parts: Split, tokenizer: Any, max_length: int) -> dict[str, Part]:
    """The parts by name. What the tokenizer gives decides, as in transformers: of pairs for example token types."""
    encodings = {
        name: _encodings(getattr(parts, name), tokenizer, max_length, name) for name in ("train", "validation", "test")
    }
    has_types = "token_type_ids" in tokenizer.model_input_names and any(
        any(encoding.type_ids) for part in encodings.values() for encoding in part
    )
    return {name: _part(task, getattr(parts, name), part, has_types) for name, part in encodings.items()}


def _encodings(examples: Sequence[Any], tokenizer: Any, max_length: int, part: str) -> list[Any]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    inputs = [task_input(example) for example in examples]
    encodings = backend.encode_batch(inputs)
    if num_cut := sum(len(encoding.ids) > max_length for encoding in encodings):
        say(f"{num_cut} of {len(encodings)} {part} texts are longer than {max_length} tokens and are cut")
        backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
        encodings = backend.encode_batch(inputs)
        backend.no_truncation()
    return list(encodings)


def task_input(example: Any) -> Any:
    """A text, or a pair of texts."""
    pair = getattr(example, "pair", None)
    return example.text if pair is None else (example.text, pair)


def _part(task: TrainedTask, examples: Sequence[Any], encodings: Sequence[Any], has_types: bool) -> Part:
    # By length, longest first: what is evaluated together is about equally long.
    order = sorted(range(len(examples)), key=lambda place: -len(encodings[place].ids))
    features = []
    for place in order:
        encoding = encodings[place]
        inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        if has_types:
            inputs["token_type_ids"] = encoding.type_ids
        features.append({**inputs, "labels": task.targets(examples[place], encoding)})
    return Part([examples[place] for place in order], [encodings[place] for place in order], features)
