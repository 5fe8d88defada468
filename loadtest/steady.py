"""How evenly running streams go on while long prompts come in, or long sources of an encoder-decoder.

A few streams run all the time; in every other spell a long prompt arrives at fixed times. The gaps between their tokens
in a spell with prompts are compared with those in the spell before, so that a slow minute meets both.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import random_models
from client import Timeline, run, send
from comparison import Case
from plan import Plan
from prompts import prompts
from report import percentile
from rounds import PAUSE_S, Numbers
from served import Served, servers
from transformers import PreTrainedTokenizerFast
from workloads import StreamFailed, body

GAPS = ("gap_p50", "gap_p95", "gap_max")
SETTLE_S = 2.0
"""Until all streams run."""


@dataclass(frozen=True)
class Arrivals:
    """Streams that run, and what arrives meanwhile."""

    running: Case
    long_tokens: int
    every_s: float
    long_new_tokens: int = 8


DECODER = Arrivals(Case(streams=8, prompt_tokens=128, new_tokens=6000), long_tokens=1024, every_s=1.0)
TRANSLATOR = Arrivals(Case(streams=8, prompt_tokens=40, new_tokens=500), long_tokens=512, every_s=1.0)
QUICK = Arrivals(Case(streams=8, prompt_tokens=16, new_tokens=400), long_tokens=64, every_s=1.0)


def measure(plan: Plan) -> Numbers:
    """By variant: gaps without and with long prompts, and how they compare."""
    return _measure(plan, plan.pick(DECODER, QUICK))


def of_translator(plan: Plan) -> Numbers:
    """The same on a random opus-mt-base, while sources of 512 tokens arrive."""
    own = plan if plan.is_quick else replace(plan, model=str(random_models.folder_of("opus-mt-base")))
    return _measure(own, plan.pick(TRANSLATOR, QUICK))


def _measure(plan: Plan, arrivals: Arrivals) -> Numbers:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{plan.model}/tokenizer.json")
    rng = random.Random(plan.seed)
    running, every_s = arrivals.running, arrivals.every_s
    spell_s = plan.pick(6.0, 1.0)
    num_long = round(plan.rounds * (spell_s + 2) / every_s) + 1
    results: Numbers = {
        "streams": running.streams, "long_prompt_tokens": arrivals.long_tokens, "every_s": every_s, "sides": {},
    }  # fmt: skip
    with servers(plan.model, plan.variants()) as served:
        for name, each in served.items():
            texts = prompts(tokenizer, running.streams, running.prompt_tokens, rng)
            long_texts = prompts(tokenizer, num_long, arrivals.long_tokens, rng)
            results["sides"][name] = _summary(run(_watch(each, arrivals, texts, long_texts, plan.rounds, spell_s)))
    return results


class _Endless:
    """One client whose next stream begins when the last one has ended; it notes all that it sees."""

    def __init__(self, url: str, text: str, new_tokens: int) -> None:
        self._url, self._body = url, body(text, new_tokens)
        self._timelines: list[Timeline] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._timelines.append(Timeline(start=0.0))
            ended = await send(self._url, self._body, timeline=self._timelines[-1])
            if not ended.is_whole:
                raise StreamFailed(f"A running stream ended with {ended.error}.")

    def gaps(self, begin: float, end: float) -> list[float]:
        """Those that ended in this time."""
        gaps = (gap for each in self._timelines for gap in zip(each.gaps_s, each.token_times[1:], strict=True))
        return [gap for gap, at in gaps if begin < at < end]


async def _watch(
    served: Served, arrivals: Arrivals, texts: Sequence[str], long_texts: list[str], rounds: int, spell_s: float
) -> list[Numbers]:
    url = f"{served.url}/generate"
    running = [_Endless(url, text, arrivals.running.new_tokens) for text in texts]
    measured = []
    try:
        await asyncio.sleep(SETTLE_S)
        cpu_before, begin = process_time(), perf_counter()
        for _ in range(rounds):
            await asyncio.sleep(PAUSE_S)
            without = await _spell(running, arrivals, [], url, spell_s)
            measured.append({"without": without, "with": await _spell(running, arrivals, long_texts, url, spell_s)})
        client_cpu = (process_time() - cpu_before) / (perf_counter() - begin)
    finally:
        for each in running:
            each.task.cancel()
        ended = await asyncio.gather(*(each.task for each in running), return_exceptions=True)
    if failed := [error for error in ended if isinstance(error, Exception)]:
        raise failed[0]
    return [{**each, "client_cpu": client_cpu} for each in measured]


async def _spell(
    running: Sequence[_Endless], arrivals: Arrivals, long_texts: list[str], url: str, spell_s: float
) -> Numbers:
    """Gaps while prompts arrive and until the last one is answered; without any for as long as a spell takes."""
    begin = perf_counter()
    arrived = []
    for number in range(round(spell_s / arrivals.every_s) if long_texts else 0):
        await asyncio.sleep(max(0.0, begin + number * arrivals.every_s - perf_counter()))
        arrived.append(asyncio.create_task(send(url, body(long_texts.pop(), arrivals.long_new_tokens))))
    await asyncio.sleep(max(0.0, begin + spell_s - perf_counter()))
    end = perf_counter()
    answers = await asyncio.gather(*arrived)
    if failed := [answer.error for answer in answers if not answer.is_whole]:
        raise StreamFailed(f"A long prompt ended with {failed[0]}.")
    gaps = [gap for each in running for gap in each.gaps(begin, end)]
    ttfts = [answer.ttft_s for answer in answers if answer.ttft_s is not None]
    return {
        "gaps": len(gaps),
        "gap_p50_ms": _ms(percentile(gaps, 50)),
        "gap_p95_ms": _ms(percentile(gaps, 95)),
        "gap_max_ms": _ms(max(gaps, default=None)),
        "ttft_p50_ms": _ms(percentile(ttfts, 50)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _summary(rounds: list[Numbers]) -> Numbers:
    ratios = {
        f"x_{key}": statistics.median(each["with"][f"{key}_ms"] / each["without"][f"{key}_ms"] for each in rounds)
        for key in GAPS
    }
    middle = {
        side: {f"{key}_ms": statistics.median(each[side][f"{key}_ms"] for each in rounds) for key in GAPS}
        for side in ("without", "with")
    }
    return {**ratios, **middle, "client_cpu": rounds[0]["client_cpu"], "rounds": rounds}
