"""How speed changes with the number of streams and with the length of what they have read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from plan import VARIANTS, Plan
from prompts import prompts
from rounds import Numbers, interleave, medians, ratio
from served import Served, servers
from transformers import AutoTokenizer
from workloads import streams

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
STREAMS_OF_CONTEXTS = (1, 8)
LONG_CONTEXTS = (1024, 4096)
STREAMS_OF_CACHES = (1, 8, 16)
CACHES: dict[str, tuple[str, ...]] = {"own cache": (), "int8 cache": ("--kv-dtype", "int8")}
PROMPT_TOKENS = 64
NEW_TOKENS = 32


def by_concurrency(plan: Plan) -> Numbers:
    """By number of streams, of new prompts each time."""
    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    rng = random.Random(plan.seed)
    sizes, new_tokens = plan.pick(CONCURRENCY, (1, 4)), _new_tokens(plan)
    points = []
    flags = {name: [*flags, "--max-running", str(max(64, *sizes))] for name, flags in plan.variants().items()}
    with servers(plan.model, flags) as served:
        for size in sizes:
            sides = {name: _side(each, new_tokens) for name, each in served.items()}
            texts = plan.pick(PROMPT_TOKENS, 8)
            measured = interleave(sides, lambda size=size, n=texts: prompts(tokenizer, size, n, rng), plan.rounds)
            points.append({"streams": size, "sides": medians(measured), "rounds": measured})
    return {"prompt_tokens": plan.pick(PROMPT_TOKENS, 8), "new_tokens": new_tokens, "points": points}


def by_context(plan: Plan) -> Numbers:
    """By length of the prompt. It is known from the first time on, so that decoding is what is measured."""
    points = list(_points(plan, plan.variants(), plan.pick(CONTEXTS, (16, 64)), plan.pick(STREAMS_OF_CONTEXTS, (1, 2))))
    return {"new_tokens": _new_tokens(plan), "points": points}


def by_cache(plan: Plan) -> Numbers:
    """An int8 KV cache beside one of the model's own type, at long contexts, for each type of weights."""
    contexts, sizes = plan.pick(LONG_CONTEXTS, (16, 64)), plan.pick(STREAMS_OF_CACHES, (1, 2))
    found = {}
    for weights, flags in VARIANTS.items():
        variants = plan.variants({cache: (*flags, *more) for cache, more in CACHES.items()})
        found[weights] = list(_points(plan, variants, contexts, sizes))
        for point in found[weights]:
            point["x_own_cache"] = ratio(point["rounds"], "tokens_per_s", *reversed(CACHES))
    return {"new_tokens": _new_tokens(plan), "points": found}


def _points(
    plan: Plan, variants: Mapping[str, Sequence[str]], contexts: Sequence[int], sizes: Sequence[int]
) -> Iterator[Numbers]:
    tokenizer = AutoTokenizer.from_pretrained(plan.model)
    rng = random.Random(plan.seed)
    with servers(plan.model, variants) as served:
        for context in contexts:
            texts = prompts(tokenizer, max(sizes), context, rng)
            for each in served.values():
                streams(each, texts, 1)
            for size in sizes:
                sides = {name: _side(each, _new_tokens(plan)) for name, each in served.items()}
                measured = interleave(sides, lambda texts=texts, size=size: texts[:size], plan.rounds)
                yield {"context": context, "streams": size, "sides": medians(measured), "rounds": measured}


def _new_tokens(plan: Plan) -> int:
    return plan.pick(NEW_TOKENS, 6)


def _side(served: Served, new_tokens: int):
    def measure(texts: Sequence[str]) -> Numbers:
        return streams(served, texts, new_tokens)

    return measure
