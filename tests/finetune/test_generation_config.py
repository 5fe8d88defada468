"""The generation config of a trained encoder-decoder: what it keeps of the base's and what it replaces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig

from server.finetune.generation import generation_config, inherited
from server.finetune.options import Options
from server.text.languages import Direction

TOKENIZER = SimpleNamespace(eos_token_id=5, pad_token_id=6)


def made(base: dict[str, Any], forced_bos_id: int | None = None, **options: Any) -> GenerationConfig:
    chosen = Options(task="seq2seq", model="m", data="d", out="o", **options)
    direction = Direction(source=None, target=None, forced_bos_id=forced_bos_id)
    return generation_config(GenerationConfig(**base), chosen, direction, 3, 20, TOKENIZER)


def test_does_not_sample_where_the_base_does() -> None:
    found = made({"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.5})
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (None, None, None, None)


def test_replaces_the_length_of_the_base() -> None:
    found = made({"max_length": 200})
    assert (found.max_length, found.max_new_tokens) == (None, 20)


def test_keeps_the_beams_of_the_base_and_names_what_affects_outputs() -> None:
    found = made({"num_beams": 4, "length_penalty": 2.0, "eos_token_id": 1})
    assert inherited(found) == "num_beams 4, length_penalty 2.0"
    assert (found.num_beams, found.eos_token_id) == (4, 1)
    assert made({"num_beams": 4}, num_beams=2).num_beams == 2


def test_forces_the_trained_language() -> None:
    assert made({"forced_bos_token_id": 8}, forced_bos_id=9).forced_bos_token_id == 9


def test_takes_tokens_that_the_base_does_not_name_from_the_tokenizer() -> None:
    found = made({})
    assert (found.eos_token_id, found.pad_token_id, found.decoder_start_token_id) == (5, 6, 3)
