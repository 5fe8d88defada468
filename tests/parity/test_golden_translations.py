"""The default translators in the engine: the golden translations of transformers, token for token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MarianMTModel

from server.config import ModelConfig
from server.defaults.install import is_whole
from server.defaults.sources import TRANSLATORS, Source
from server.engine.engine import DecoderEngine
from server.engine.executors.build import build_runner
from server.models.packed_linear import pack_linears
from server.protocol import Generate, SamplingParams
from tests.parity.test_parity import run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "defaults" / "translations"
MAX_LEN = 128


@pytest.mark.defaults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", TRANSLATORS, ids=lambda source: source.name)
def test_sixty_sentences_in_one_batch_with_four_beams_give_the_golden_translations(source: Source) -> None:
    assert is_whole(source, ROOT / "models"), "run: make translator"
    torch.set_num_threads(2)
    folder = ROOT / "models" / source.name
    tokenizer, module = AutoTokenizer.from_pretrained(folder), MarianMTModel.from_pretrained(folder).eval()
    entries = json.loads((GOLDEN / f"{source.name.removeprefix('translator-')}.json").read_text())["translations"]
    pad = module.config.pad_token_id
    params = SamplingParams(num_beams=4, max_new_tokens=MAX_LEN - 2, end_token_ids=(0,), suppress_tokens=(pad,))
    commands = [
        Generate(str(index), [pad], params, source_ids=tokenizer(entry["source"]).input_ids)
        for index, entry in enumerate(entries)
    ]
    config = ModelConfig(name="m", path="unused", block_size=16, kv_cache_gib=0.25, max_running=64)
    runner = build_runner(module, config, MAX_LEN, max_source_len=MAX_LEN, pack=pack_linears)
    engine = DecoderEngine(
        runner, max_model_len=MAX_LEN, max_source_len=MAX_LEN, max_batch_tokens=512, max_running=64, prefix_cache=True
    )
    got = run(engine, commands)
    for index, entry in enumerate(entries):
        (sample,) = got[str(index)]
        assert sample.token_ids == entry["ids"], entry["source"]
