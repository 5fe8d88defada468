"""A folder of every family, served as it lies by a real server, answers with the tokens of transformers' generate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.server_process import ServerProcess
from tests.system.families import DECODERS, NUM_NEW

pytestmark = pytest.mark.timeout(280)

PROMPTS = (
    "Every morning the carts come down",
    "河边的磨坊 😀 Über",
    'In 1887 the price was 9.50; "nobody" remembers why. ' * 4,
    "النهر يجري",
)


def expected_ids(folder: Path, prompt: str) -> list[int]:
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt")
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = module.generate(**ids, max_new_tokens=NUM_NEW, do_sample=False)
    new: list[int] = output[0, ids["input_ids"].shape[1] :].tolist()
    return new


def served_ids(url: str, family: str, prompt: str) -> list[int]:
    parameters: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False, "details": True}
    body = {"model": family, "inputs": prompt, "parameters": parameters}
    response = httpx2.post(f"{url}/generate", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return [token["id"] for token in response.json()["details"]["tokens"]]


@pytest.mark.parametrize("family", DECODERS)
def test_a_served_folder_gives_the_tokens_of_transformers(
    family: str, family_folders: dict[str, Path], family_server: ServerProcess
):
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        actual = list(pool.map(lambda prompt: served_ids(family_server.url, family, prompt), PROMPTS))
    assert actual == [expected_ids(family_folders[family], prompt) for prompt in PROMPTS]


def test_only_models_without_plain_attention_take_the_slow_way(family_server: ServerProcess):
    models = httpx2.get(f"{family_server.url}/info").json()["models"]
    assert {model["name"]: model["executor"] for model in models if model["name"] in DECODERS} == {
        family: "compat" if family == "bloom" else "fused" for family in DECODERS
    }
