"""Files that are made to take a reader's time or memory are refused in one sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from server.commands.planned import plan_or_problem
from server.config import ModelConfig
from server.models import folder as folders
from tests.models.folders import read, refusal

DEPTH = 100_000
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def refused(folder: Path) -> str:
    """By load and plan alike."""
    message = refusal(folder)
    assert isinstance(plan_or_problem(ModelConfig(name="tiny", path=str(folder))), str)
    return message


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_deeply_is_refused(decoder: Path, name: str, opening: str) -> None:
    (decoder / name).write_text('{"model_type": ' + opening * DEPTH)
    refused(decoder)


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_too_large_is_refused_unread(decoder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folders.MAX_BYTES, name, (decoder / name).stat().st_size - 1)
    assert f"{name} has " in refused(decoder)


def header(entries: object) -> bytes:
    content = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(content)) + content


HEADERS = {
    "a length of terabytes": struct.pack("<Q", 2**43) + b"{}",
    "a tensor of terabytes": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "a shape that overflows": header({"a": {"dtype": "F32", "shape": [2**40] * 9, "data_offsets": [0, 4]}}),
    "deep nesting": header(b'{"a":' * DEPTH),
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "not an object": header([1]),
    "an entry that is not an object": header({"a": 1}),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_lies_is_refused(decoder: Path, kind: str) -> None:
    (decoder / "model.safetensors").write_bytes(HEADERS[kind])
    refused(decoder)


BOMBS = {
    "a pattern that backtracks": ("pre_tokenizer", pre_tokenizers.Split(Regex("(a+)+$"), "isolated")),
    "a text that doubles": ("normalizer", normalizers.Sequence([normalizers.Replace("a", "aaaa")] * 8)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_tokenizer_whose_patterns_explode_is_refused(decoder: Path, kind: str) -> None:
    stage, bomb = BOMBS[kind]
    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    setattr(tokenizer, stage, bomb)
    tokenizer.save(str(decoder / "tokenizer.json"))
    assert "takes more than 5 s or 2 GiB for texts of a few words" in refused(decoder)


def test_a_tokenizer_with_usual_patterns_is_taken(decoder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    tokenizer.save(str(decoder / "tokenizer.json"))
    assert read(decoder).task == "generate"
