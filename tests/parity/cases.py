"""Requests with every option alone, and with many drawn at random."""

from __future__ import annotations

import random
from typing import Any

from server.protocol import Generate, SamplingParams

END_IDS = (1, 17)
MAX_NEW = 12
NUM_TOKENS = 384
"""Ids above have zero weights in the tiny models."""

PENALTIES: dict[str, list[Any]] = {
    "repetition_penalty": [0.7, 1.3, 2.0],
    "presence_penalty": [-0.7, 1.5],
    "frequency_penalty": [-0.4, 0.9],
    "encoder_repetition_penalty": [0.6, 1.8],
    "no_repeat_ngram_size": [1, 2, 3],
    "encoder_no_repeat_ngram_size": [1, 2],
}
BIASES: dict[str, list[Any]] = {
    "logit_bias": [{5: 3.0, 300: -4.0, 90: 2.5}, dict.fromkeys(END_IDS, 4.0)],
    "sequence_bias": [
        (((40,), 5.0), ((41, 42), 6.0), ((7, 9, 11), -8.0)),
        (((33,), -float("inf")), ((40, 41), -float("inf"))),
    ],
    "allowed_token_ids": [tuple(range(20, 380, 3))],
    "suppress_tokens": [tuple(range(30, 300, 2))],
    "begin_suppress_tokens": [tuple(range(3, 384, 2))],
    "forced_eos_token_ids": [(1,), (17,)],
}
LENGTHS: dict[str, list[Any]] = {
    "min_new_tokens": [1, 5, MAX_NEW],
    "exponential_decay_length_penalty": [(2, 1.3), (0, 1.8)],
    "max_new_tokens": [1, 2, MAX_NEW],
}
DRAW: dict[str, list[Any]] = {
    "temperature": [0.3, 0.8, 1.7],
    "top_n_sigma": [0.7, 1.5],
    "top_k": [1, 4, 50],
    "top_p": [0.3, 0.9],
    "min_p": [0.02, 0.3],
    "typical_p": [0.3, 0.9],
    "epsilon_cutoff": [0.003, 0.05],
    "eta_cutoff": [0.003, 0.05],
    "renormalize_logits": [True],
}
BEAMS: dict[str, list[Any]] = {
    "num_beams": [2, 3, 4, 8],
    "length_penalty": [-1.0, 0.0, 0.6, 1.0, 2.0],
    "early_stopping": [True, False, "never"],
}
RULES = PENALTIES | BIASES | LENGTHS


def command(request_id: str, prompt_ids: list[int], **params: Any) -> Generate:
    params = {"max_new_tokens": MAX_NEW, "end_token_ids": END_IDS, **params}
    return Generate(request_id, prompt_ids, SamplingParams(**params))


def each_option(prompt_ids: list[int]) -> list[Generate]:
    """One request for every option and value: greedy, sampled and with beams where the option goes with them."""
    found = []

    def add(**params: Any) -> None:
        found.append(command(f"{len(found)}", prompt_ids, **params))

    add()
    for name, values in RULES.items():
        for seed, value in enumerate(values):
            add(**{name: value})
            add(do_sample=True, seed=seed, **{name: value})
            add(num_beams=3, **{name: value})
    for name, values in DRAW.items():
        for seed, value in enumerate(values):
            add(do_sample=True, seed=seed + 10, **{name: value})
    for name, values in BEAMS.items():
        for value in values:
            add(**{"num_beams": 4, "num_return_sequences": 2, name: value})
    add(do_sample=True, seed=20, num_return_sequences=4)
    add(num_beams=3, renormalize_logits=True, repetition_penalty=1.4)
    for scale in (0.5, 1.7):
        add(guidance_scale=scale)
        add(guidance_scale=scale, do_sample=True, seed=21)
    return found


def at_random(prompts: list[list[int]], number: int, seed: int) -> list[Generate]:
    """Requests with two to seven options each."""
    draw = random.Random(seed)
    return [_at_random(f"random-{i}", draw.choice(prompts), draw) for i in range(number)]


def _at_random(request_id: str, prompt_ids: list[int], draw: random.Random) -> Generate:
    params: dict[str, Any] = {}
    for name in draw.sample(sorted(RULES), draw.randint(1, 4)):
        params[name] = draw.choice(RULES[name])
    kind = draw.choice(["greedy", "sample", "sample", "beams", "beams"])
    if kind == "sample":
        params |= {"do_sample": True, "seed": draw.randrange(2**63)}
        params["num_return_sequences"] = draw.choice([1, 1, 3])
        for name in draw.sample(sorted(DRAW), draw.randint(0, 3)):
            params[name] = draw.choice(DRAW[name])
    elif kind == "beams":
        params |= {name: draw.choice(values) for name, values in BEAMS.items()}
        params["num_return_sequences"] = draw.randint(1, params["num_beams"])
        params["renormalize_logits"] = draw.random() < 0.2
    # What would leave no token at all is another test's.
    params["min_new_tokens"] = min(params.get("min_new_tokens", 0), params.get("max_new_tokens", MAX_NEW))
    if "forced_eos_token_ids" in params:
        params["min_new_tokens"] = 0
        if params.get("max_new_tokens") == 1:
            del params["forced_eos_token_ids"]
    return command(request_id, prompt_ids, **params)
