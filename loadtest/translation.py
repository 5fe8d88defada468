"""An encoder-decoder of OPUS-MT's shape beside `generate` and CTranslate2, on the same sources in the same rounds.

    python loadtest/bench.py --only translation
    python loadtest/bench.py --only translation -- --threads 1

The weights are random: speed does not depend on them. Sluice is measured over HTTP, the others in process. `generate`
runs one request after another, as behind a plain route, and all of them in one padded batch.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import httpx2
import peer_environment
import random_models
import torch
from peers import Peer
from plan import Plan
from prompts import prompts
from report import table
from rounds import Numbers, interleave, medians, ratio
from served import NAME, Served, servers
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast
from workloads import StreamFailed

ONE_BY_ONE, STATIC, CTRANSLATE2 = "generate, one by one", "generate, one batch", "CTranslate2 int8"
RATIOS = (("plain", ONE_BY_ONE), ("plain", STATIC), ("int8", STATIC), ("int8", CTRANSLATE2))
"""Ours, and what it is compared with."""
SCRIPT = Path(__file__).with_name("ctranslate2_process.py")
LENGTHS = range(20, 46)
"""Tokens of a source."""


@dataclass(frozen=True)
class Case:
    """Requests at once."""

    requests: int
    num_beams: int
    new_tokens: int = 32


CASES = {"1 request, 4 beams": Case(1, 4), "8 requests, 4 beams": Case(8, 4), "32 greedy": Case(32, 1)}
QUICK_CASES = {"2 requests, 2 beams": Case(2, 2, new_tokens=4)}


@dataclass(frozen=True)
class Sources:
    """Of one round: the texts, and the token ids that they are."""

    texts: list[str]
    ids: list[list[int]]


class Generate:
    """The model as anybody would load it, without an end token: all outputs are equally long."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None
        self._padding = self._model.config.pad_token_id

    def run(self, batches: list[list[list[int]]], case: Case) -> Numbers:
        start, cpu = perf_counter(), process_time()
        for sources in batches:
            self._generate(sources, case)
        return {"seconds": perf_counter() - start, "cpu_s": process_time() - cpu}

    def _generate(self, sources: list[list[int]], case: Case) -> None:
        longest = max(map(len, sources))
        ids = torch.tensor([source + [self._padding] * (longest - len(source)) for source in sources])
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=(ids != self._padding).long(),
                num_beams=case.num_beams,
                do_sample=False,
                max_new_tokens=case.new_tokens,
            )
        assert output.shape[1] == 1 + case.new_tokens


def measure(plan: Plan) -> Numbers:
    """Translation beside `generate` and CTranslate2."""
    folder = random_models.folder_of("opus-mt-base")
    threads = _threads(plan)
    generate = Generate(folder, threads)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    rng = random.Random(plan.seed)
    arguments = ("serve", str(peer_environment.ctranslate2_model(folder)), str(threads))
    with (
        Peer(*arguments, python=peer_environment.ctranslate2_installed(), script=SCRIPT) as peer,
        servers(str(folder), plan.variants()) as served,
    ):
        found = {}
        for name, case in plan.pick(CASES, QUICK_CASES).items():
            sides = _sides(served, generate, peer, case)
            given = lambda case=case: _sources(tokenizer, case, rng)  # noqa: E731
            for side in sides.values():
                side(given())
            rounds = interleave(sides, given, plan.rounds)
            found[name] = {"case": asdict(case), "sides": medians(rounds), "rounds": rounds, "ratios": _ratios(rounds)}
        facts = {**{name: each.facts() for name, each in served.items()}, CTRANSLATE2: peer.facts, "threads": threads}
    return {"facts": facts, "cases": found}


def _threads(plan: Plan) -> int:
    flags = list(plan.serve_flags)
    return int(flags[flags.index("--threads") + 1]) if "--threads" in flags else os.cpu_count() or 1


def _sources(tokenizer: Any, case: Case, rng: random.Random) -> Sources:
    texts = [prompts(tokenizer, 1, rng.choice(LENGTHS), rng)[0] for _ in range(case.requests)]
    return Sources(texts, [tokenizer(text)["input_ids"] for text in texts])


def _sides(
    served: Mapping[str, Served], generate: Generate, peer: Peer, case: Case
) -> dict[str, Callable[[Sources], Numbers]]:
    def ours(each: Served) -> Callable[[Sources], Numbers]:
        return lambda sources: _served(each, sources.texts, case)

    def ctranslate2(sources: Sources) -> Numbers:
        answer = peer.ask(source_ids=sources.ids, num_beams=case.num_beams, new_tokens=case.new_tokens)
        assert answer.pop("new_tokens") == [case.new_tokens] * case.requests
        return answer

    return {
        **{name: ours(each) for name, each in served.items()},
        ONE_BY_ONE: lambda sources: generate.run([[source] for source in sources.ids], case),
        STATIC: lambda sources: generate.run([sources.ids], case),
        CTRANSLATE2: ctranslate2,
    }


def _served(served: Served, texts: list[str], case: Case) -> Numbers:
    start, cpu = perf_counter(), served.cpu_s()
    asyncio.run(_translate_all(served.url, texts, case))
    return {"seconds": perf_counter() - start, "cpu_s": served.cpu_s() - cpu}


async def _translate_all(url: str, texts: list[str], case: Case) -> None:
    fixed = {"num_beams": case.num_beams, "max_new_tokens": case.new_tokens, "ignore_eos": True, "details": True}
    async with httpx2.AsyncClient(timeout=600) as client:
        calls = [client.post(f"{url}/generate", json={"inputs": text, "parameters": fixed}) for text in texts]
        answers = await asyncio.gather(*calls)
    for answer in answers:
        if answer.status_code != 200 or answer.json()["details"]["generated_tokens"] != case.new_tokens:
            raise StreamFailed(f"A request to {NAME} failed: {answer.text[:300]}")


def _ratios(rounds: list[dict[str, Numbers]]) -> dict[str, Numbers]:
    """How many times the other side's time each of ours saves, on the clock and of the processor."""
    return {
        f"{ours} / {other}": {key: ratio(rounds, key, other, ours) for key in ("seconds", "cpu_s")}
        for ours, other in RATIOS
        if ours in rounds[0]
    }


def shown(found: Mapping[str, Any]) -> str:
    """Output tokens a second, then the ratios: of the clock and, in brackets, of processor seconds."""
    cases = found["cases"]
    first = next(iter(cases.values()))
    rows = [
        [
            name,
            *(f"{_tokens(each) / side['seconds']:,.0f}" for side in each["sides"].values()),
            *(f"{ratios['seconds']:.2f} ({ratios['cpu_s']:.2f})" for ratios in each["ratios"].values()),
        ]
        for name, each in cases.items()
    ]
    return table(["tokens/s", *first["sides"], *first["ratios"]], rows)


def _tokens(found: Mapping[str, Any]) -> int:
    return int(found["case"]["requests"] * found["case"]["new_tokens"])
