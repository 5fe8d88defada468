"""Tests' tokenizers are the same in every process, so that a failure comes back."""

from __future__ import annotations

import pytest

from tests import tiny_encoders, tiny_tokenizers


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "metaspace"])
def test_encoders_tokenizers_are_the_same_in_every_training(kind: tiny_encoders.Kind) -> None:
    train = tiny_encoders.tiny_tokenizer.__wrapped__
    first = train(kind).backend_tokenizer.to_str()
    assert all(train(kind).backend_tokenizer.to_str() == first for _ in range(3))


@pytest.mark.parametrize("kind", ["metaspace", "word_piece"])
def test_tokenizers_are_the_same_in_every_training(kind: str) -> None:
    train = tiny_tokenizers.tokenizer_files.__wrapped__
    first = train(kind)
    assert all(train(kind) == first for _ in range(3))
