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
    """Each a ``tokenizers.Encoding``, cut at the greatest length, or a window of one."""
    features: list[dict[str, Any]]

    def spread(self, most: int) -> Part:
        """At most ``most`` rows, spread evenly from the longest to the shortest; 0 means all."""
        number = len(self.features)
        if not 0 < most < number:
            return self
        rows = [row * number // most for row in range(most)]
        return Part(*([items[row] for row in rows] for items in (self.examples, self.encodings, self.features)))

    @property
    def num_examples(self) -> int:
        """An example with several windows counts once."""
        return len({id(example) for example in self.examples})


def encode(task: TrainedTask, parts: Split, tokenizer: Any, max_length: int) -> dict[str, Part]:
    """The parts by name. What the tokenizer gives decides, as in transformers: of pairs for example token types."""
    encoded = {
        name: task.encodings(getattr(parts, name), tokenizer, max_length, name)
        for name in ("train", "validation", "test")
    }
    has_types = "token_type_ids" in tokenizer.model_input_names and any(
        any(encoding.type_ids) for part in encoded.values() for _, encoding in part
    )
    return {name: _part(task, part, has_types) for name, part in encoded.items()}


def text_encodings(examples: Sequence[Any], tokenizer: Any, max_length: int, part: str) -> list[tuple[Any, Any]]:
    """Each example with its text, cut where it is too long."""
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
    return list(zip(examples, encodings, strict=True))


def task_input(example: Any) -> Any:
    """A text, or a pair of texts."""
    pair = getattr(example, "pair", None)
    return example.text if pair is None else (example.text, pair)


def _part(task: TrainedTask, encoded: Sequence[tuple[Any, Any]], has_types: bool) -> Part:
    # By length, longest first: what is evaluated together is about equally long.
    ordered = sorted(encoded, key=lambda pair: -len(pair[1].ids))
    features = []
    for example, encoding in ordered:
        inputs = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        if has_types:
            inputs["token_type_ids"] = encoding.type_ids
        features.append({**inputs, **task.labelled(example, encoding)})
    return Part([example for example, _ in ordered], [encoding for _, encoding in ordered], features)
