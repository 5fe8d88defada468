"""Folders of encoder-decoders, served by a real server, answer as transformers' generate does."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.families import NUM_NEW
from tests.tiny_encoder_decoders import KINDS

pytestmark = pytest.mark.timeout(280)

SOURCES = (
    "Every morning the carts come down",
    "河边的磨坊 😀 Über",
    'In 1887 the price was 9.50; "nobody" remembers why. ' * 4,
    "a",
)

STEPS, PROMPT_TOKENS = "sluice_step_seconds_count", "sluice_prompt_tokens_total"


def expected_ids(folder: Path, source: str, **options: Any) -> list[int]:
    ids = AutoTokenizer.from_pretrained(folder)(source, return_tensors="pt")
    module = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    if module.generation_config.max_length is None:
        options = {"max_new_tokens": NUM_NEW, **options}
    output = module.generate(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **options)
    new: list[int] = output[0, 1:].tolist()
    return new[: new.index(1) + 1] if 1 in new else new


def post(url: str, family: str, source: str, **parameters: Any) -> dict[str, Any]:
    parameters = {"max_new_tokens": NUM_NEW, "details": True, **parameters}
    body = {"model": family, "inputs": source, "parameters": parameters}
    response = httpx2.post(f"{url}/generate", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


@pytest.mark.parametrize("family", KINDS)
def test_a_served_folder_gives_the_tokens_of_transformers(
    family: str, family_folders: dict[str, Path], family_server: ServerProcess
):
    options: list[dict[str, Any]] = [
        {"do_sample": False},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
    ]
    asked = [(source, option) for source in SOURCES for option in options]
    with ThreadPoolExecutor(len(asked)) as pool:
        actual = list(pool.map(lambda one: ids_of(post(family_server.url, family, one[0], **one[1])), asked))
    assert actual == [expected_ids(family_folders[family], source, **option) for source, option in asked]


def test_the_input_is_counted_as_the_encoder_reads_it(family_server: ServerProcess):
    details = post(family_server.url, "bart", SOURCES[0])["details"]
    again = post(family_server.url, "bart", SOURCES[0])["details"]
    assert again["cached_tokens"] == again["input_length"] == details["input_length"] > 1


@pytest.mark.parametrize("family", KINDS)
def test_a_worker_killed_in_a_stream_changes_no_token(family: str, family_server: ServerProcess):
    parameters = {"max_new_tokens": 300, "do_sample": True, "seed": 11, "ignore_eos": True, "details": True}
    whole = ids_of(post(family_server.url, family, SOURCES[2], **parameters))
    body = {"model": family, "inputs": SOURCES[2], "parameters": parameters}
    ids: list[int] = []
    with httpx2.stream("POST", f"{family_server.url}/generate_stream", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                ids.append(event["token"]["id"])
                if len(ids) == 20:
                    os.kill(family_server.worker_pid(family), signal.SIGKILL)
    assert len(whole) == 300
    assert ids == whole
    # The source is new to the worker that goes on, and known to it the second time.
    assert ids_of(post(family_server.url, family, SOURCES[2], **parameters)) == whole


def test_answers_that_t5_writes_are_transformers_hypotheses_with_their_probabilities(
    family_server: ServerProcess, family_folders: dict[str, Path]
) -> None:
    question, context = "Who comes down?", SOURCES[0]
    body = {"model": "t5", "inputs": {"question": question, "context": context}}
    parameters = {"top_k": 3, "max_answer_len": 6}
    response = httpx2.post(
        f"{family_server.url}/question-answering", json={**body, "parameters": parameters}, timeout=120
    )
    assert response.status_code == 200, response.text
    tokenizer = AutoTokenizer.from_pretrained(family_folders["t5"])
    module = AutoModelForSeq2SeqLM.from_pretrained(family_folders["t5"], dtype=torch.float32)
    source = tokenizer(f"question: {question} context: {context}", return_tensors="pt")
    hypotheses = module.generate(**source, num_beams=3, num_return_sequences=3, max_new_tokens=6)
    logits = module(**{name: ids.expand(3, -1) for name, ids in source.items()}, decoder_input_ids=hypotheses).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, hypotheses[:, 1:, None])[..., 0]
    scores = logprobs.masked_fill(hypotheses[:, 1:] == module.config.pad_token_id, 0).sum(1).exp().tolist()
    texts = [text.strip() for text in tokenizer.batch_decode(hypotheses, skip_special_tokens=True)]
    expected = {text: max(score for each, score in zip(texts, scores, strict=True) if each == text) for text in texts}
    assert {answer["answer"]: answer["score"] for answer in response.json()} == pytest.approx(expected, rel=1e-4)


def test_a_worker_killed_in_the_middle_of_a_source_changes_no_token(family_folders: dict[str, Path]):
    source = SOURCES[2] * 12
    small_steps = ("--max-running", "4", "--max-batch-tokens", "16", "--max-model-len", "2048")
    with (
        running_server("--model", f"t5={family_folders['t5']}", *TINY_SETTINGS, *small_steps) as server,
        ThreadPoolExecutor() as pool,
    ):
        before = {name: server.metric(name) for name in (STEPS, PROMPT_TOKENS)}
        answer = pool.submit(post, server.url, "t5", source, do_sample=False)
        while server.metric(STEPS) < before[STEPS] + 5:
            assert not answer.done()
        worker = server.worker_pid("t5")
        os.kill(worker, signal.SIGSTOP)
        assert server.metric(PROMPT_TOKENS) == before[PROMPT_TOKENS], "the source is complete"
        os.kill(worker, signal.SIGKILL)
        assert ids_of(answer.result()) == expected_ids(family_folders["t5"], source, do_sample=False)
