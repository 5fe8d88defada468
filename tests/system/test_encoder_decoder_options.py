"""What forces, forbids and bounds the outputs and sources of encoder-decoders, over HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers import GenerationConfig

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.families import NUM_NEW
from tests.system.test_encoder_decoders import SOURCES, expected_ids, ids_of, post
from tests.tiny_encoder_decoders import KINDS, write_tiny_encoder_decoder

pytestmark = pytest.mark.timeout(280)

SETTINGS: dict[str, Any] = {
    "forced_bos_token_id": 9, "forced_eos_token_id": 1, "no_repeat_ngram_size": 2, "min_length": 5,
    "max_length": NUM_NEW, "suppress_tokens": list(range(20, 200, 2)), "begin_suppress_tokens": list(range(21, 380, 2)),
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "grain": {"enum": ["oat", "小麦"]}},
    "required": ["name", "grain"],
    "additionalProperties": False,
}
CHOICES = ["the mill", "河边", "old bridge"]
GRAMMARS: dict[str, Any] = {"regex": r"[a-c]{3,6}-[0-9]{2}", "json": SCHEMA, "choice": CHOICES}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 3}, "sampled": {"do_sample": True, "seed": 4}}
# JSON may have any white space, of which a greedy tiny model finds no end.
PAIRS = [(kind, way) for kind in GRAMMARS for way in WAYS if kind != "json" or way == "sampled"]


def test_what_the_generation_config_forces_and_forbids_is_followed(tmp_path: Path) -> None:
    write_tiny_encoder_decoder(tmp_path, "bart")
    config = GenerationConfig.from_pretrained(tmp_path)
    config.update(**SETTINGS)
    config.save_pretrained(tmp_path)
    with running_server("--model", f"bart={tmp_path}", *TINY_SETTINGS) as server:
        for source in SOURCES:
            for options in ({}, {"num_beams": 3}):
                wanted = expected_ids(tmp_path, source, **options)
                assert wanted[0] == 9 and wanted[-1] == 1
                assert ids_of(post(server.url, "bart", source, max_new_tokens=None, **options)) == wanted


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_a_grammar_holds_the_output(kind: str, way: str, family_server: ServerProcess) -> None:
    for family in KINDS:
        parameters = {"max_new_tokens": 60, "grammar": {"type": kind, "value": GRAMMARS[kind]}, **WAYS[way]}
        answer = post(family_server.url, family, SOURCES[0], **parameters)
        assert answer["details"]["finish_reason"] == "eos_token"
        assert follows(kind, answer["generated_text"]), answer


def follows(kind: str, text: str) -> bool:
    if kind == "regex":
        return re.fullmatch(GRAMMARS[kind], text) is not None
    if kind == "choice":
        return text in CHOICES
    value = json.loads(text)
    return set(value) == set(SCHEMA["required"]) and len(value["name"]) <= 6 and value["grain"] in ("oat", "小麦")


@pytest.mark.parametrize("path", ["/generate", "/translate", "/summarize"])
def test_a_source_of_ten_thousand_tokens_is_refused_with_both_numbers_or_cut(
    path: str, family_server: ServerProcess
) -> None:
    url = family_server.url
    body: dict[str, Any] = {"model": "t5", "inputs": "river " * 10_000, "parameters": {"max_new_tokens": 4}}
    refused = httpx2.post(f"{url}{path}", json=body, timeout=120)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "context_length_exceeded")
    assert re.search(r"has at least \d{4,5} tokens", error["message"]), error["message"]
    model = next(model for model in httpx2.get(f"{url}/info").json()["models"] if model["name"] == "t5")
    assert str(model["max_input_tokens"]) in error["message"]
    body["parameters"]["truncate"] = 30
    assert httpx2.post(f"{url}{path}", json=body, timeout=120).status_code == 200
