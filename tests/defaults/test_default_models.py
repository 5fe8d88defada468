"""The default models themselves, where they have been fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from server.defaults.install import is_whole
from server.defaults.sources import SOURCES

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.defaults
def test_the_default_models_are_whole_and_readable():
    for source in SOURCES:
        assert is_whole(source, MODELS), source.name
    assert len(load_file(MODELS / "rampart" / "model.safetensors")) == 103
    assert "CC BY 4.0" in (MODELS / "rampart" / "ATTRIBUTION").read_text()


@pytest.mark.defaults
def test_the_default_generator_has_the_tokenizer_that_it_was_trained_with():
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m-instruct")
    assert tokenizer("Hello 123 world").input_ids == [19556, 216, 33, 34, 35, 905]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "\u0120\u0120", "1", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
