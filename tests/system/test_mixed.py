"""Every kind of request at once, streaming, on a real server: each equals its lone run."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from typing import Any

import httpx2
import pytest

from tests.server_process import ServerProcess

pytestmark = pytest.mark.timeout(270)

NUM_REQUESTS = 64
TEXTS = [
    "The river runs",
    "今天天气很好，我们",
    "مرحبا بالعالم",
    "Every morning the 😀",
    "How much for a sack?",
    "In 1887",
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "grain": {"enum": ["oat", "小麦", "rye"]}},
    "required": ["name", "grain"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"do_sample": True, "temperature": 1.3, "top_k": 40},
    "nucleus": {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.4},
    "beams 2": {"num_beams": 2},
    "beams 4": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.7},
    "beams 8": {"num_beams": 8, "early_stopping": True, "no_repeat_ngram_size": 2},
    "n": {"do_sample": True, "num_return_sequences": 4},
    "schema": {"do_sample": True, "grammar": {"type": "json", "value": SCHEMA}, "max_new_tokens": 40},
    "choice": {"grammar": {"type": "choice", "value": ["the mill", "河边", "old bridge"]}},
    "bans": {"do_sample": True, "temperature": 1.5, "banned_phrases": ["e", "的", "mill", "ا"]},
    "stops": {"do_sample": True, "stop": ["a", "。", " t"]},
    "drawn by rank": {"do_sample": True, "typical_p": 0.8, "eta_cutoff": 0.002, "min_p": 0.01},
}


def bodies() -> list[dict[str, Any]]:
    draw = random.Random(8)
    kinds = list(KINDS.values())
    found = []
    for i in range(NUM_REQUESTS):
        parameters = {"max_new_tokens": draw.randint(1, 24), "seed": i, **kinds[i % len(kinds)]}
        if not parameters.get("do_sample"):
            del parameters["seed"]
        text = draw.choice(TEXTS) * draw.randint(1, 12)
        found.append({"inputs": text, "stream": True, "parameters": {**parameters, "details": True}})
    return found


class Story:
    """What a client saw of one request."""

    def __init__(self) -> None:
        self.token_ids: dict[int, list[int]] = defaultdict(list)
        self.texts: dict[int, str] = defaultdict(str)
        self.endings: dict[int, tuple[str, str, float | None]] = {}

    def take(self, event: dict[str, Any]) -> None:
        number = event.get("sequence", 0)
        assert number not in self.endings, "an event after the last"
        self.token_ids[number].append(event["token"]["id"])
        if not event["token"]["special"]:
            self.texts[number] += event["token"]["text"]
        if event["details"] is not None:
            score = event["details"].get("score")
            ending = event["generated_text"], event["details"]["finish_reason"], score and round(score, 4)
            self.endings[number] = ending


async def tell(client: httpx2.AsyncClient, body: dict[str, Any]) -> Story:
    story = Story()
    async with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                story.take(json.loads(line.removeprefix("data:")))
            assert not line.startswith("event: error"), line
    return story


async def all_stories(url: str, requests: list[dict[str, Any]], at_once: bool) -> list[Story]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=240, limits=limits) as client:
        if at_once:
            return await asyncio.gather(*(tell(client, body) for body in requests))
        return [await tell(client, body) for body in requests]


def test_requests_of_every_kind_at_once_each_equal_their_lone_run(tiny_server: ServerProcess) -> None:
    requests = bodies()
    alone = asyncio.run(all_stories(tiny_server.url, requests, at_once=False))
    together = asyncio.run(all_stories(tiny_server.url, requests, at_once=True))
    for body, lone, mixed in zip(requests, alone, together, strict=True):
        assert vars(mixed) == vars(lone), body
        num_sequences = body["parameters"].get("num_return_sequences", 1)
        assert set(lone.endings) == set(range(num_sequences))
        for number, (generated, _, _) in lone.endings.items():
            assert lone.texts[number] == generated
        if "banned_phrases" in body["parameters"]:
            for phrase in body["parameters"]["banned_phrases"]:
                assert all(phrase not in text.casefold() for text in lone.texts.values())
    assert tiny_server.metric("sluice_kv_blocks_used") == 0
