"""The server beside one static batch of `generate`, on the same prompts in the same rounds.

Every prompt is new, so that the prefix cache has nothing to give, but where a shared prefix is what is measured.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from baseline import StaticBatch
from floors import read_bytes_per_s
from plan import Plan
from prompts import prompts
from rounds import Numbers, interleave, medians, ratio
from served import Served, servers
from workloads import streams, ttft_ms

STATIC, READ = "static batch", "memory"
WARM_UP_TOKENS = 8
WARM_UP_PROMPT_TOKENS = 4096
Send = Callable[[list[str], int], Numbers]
"""Generates N new tokens for each text, in process. The results have the same names as those of `workloads.streams`."""


@dataclass(frozen=True)
class Case:
    """So many streams of equally long prompts."""

    streams: int
    prompt_tokens: int = 128
    new_tokens: int = 64
    shared_tokens: int = 0
    """Of a prefix that all prompts of a round begin with."""


@dataclass(frozen=True)
class Sides:
    """Servers and `generate` over one model."""

    served: Mapping[str, Served]
    static: StaticBatch
    rng: random.Random

    def texts(self, case: Case, *, prefix: str = "") -> list[str]:
        return prompts(self.static.tokenizer, case.streams, case.prompt_tokens, self.rng, prefix=prefix)

    def prefix(self, case: Case) -> str:
        return prompts(self.static.tokenizer, 1, case.shared_tokens, self.rng)[0] if case.shared_tokens else ""

    def facts(self) -> dict[str, Numbers]:
        return {name: {**each.facts(), "memory_bytes": each.memory_bytes()} for name, each in self.served.items()}

    def idle_cpu(self, during: Callable[[], float]) -> Numbers:
        """Seconds of ``during``, and the part of a core that the servers took meanwhile."""
        before = sum(each.cpu_s() for each in self.served.values())
        seconds = during()
        return {
            "seconds": seconds,
            "idle_server_cpu": (sum(e.cpu_s() for e in self.served.values()) - before) / seconds,
        }


@contextmanager
def opened(plan: Plan, model: str, variants: Mapping[str, list[str]]) -> Iterator[Sides]:
    with servers(model, variants) as served:
        dtype = next(iter(served.values())).facts()["dtype"]
        yield Sides(served, StaticBatch(model, dtype), random.Random(plan.seed))


def compare(sides: Sides, case: Case, rounds: int, others: Mapping[str, Send] | None = None) -> Numbers:
    """Each side's numbers and, of the tokens a second, how many times those of the static batch.

    ``others`` are compared too, in process.
    """
    others = others or {}

    def generate(texts: list[str]) -> Numbers:
        numbers = sides.idle_cpu(lambda: sides.static.generate_s(texts, case.new_tokens))
        return {**numbers, "tokens_per_s": case.streams * case.new_tokens / numbers["seconds"]}

    def served_side(served: Served) -> Callable[[list[str]], Numbers]:
        return lambda texts: streams(served, texts, case.new_tokens)

    def other_side(send: Send) -> Callable[[list[str]], Numbers]:
        return lambda texts: send(texts, case.new_tokens)

    warm_up(sides, case, others)
    measured = interleave(
        {
            **{name: served_side(served) for name, served in sides.served.items()},
            **{name: other_side(send) for name, send in others.items()},
            STATIC: generate,
            READ: lambda _: {"bytes_per_s": read_bytes_per_s(pick=statistics.median)},
        },
        lambda: sides.texts(case, prefix=sides.prefix(case)),
        rounds,
    )
    return summary(case, measured)


def warm_up(sides: Sides, case: Case, others: Mapping[str, Send] | None = None) -> None:
    few = min(WARM_UP_TOKENS, case.new_tokens)
    texts = sides.texts(case)[: max(1, WARM_UP_PROMPT_TOKENS // case.prompt_tokens)]
    for served in sides.served.values():
        streams(served, texts, few)
    for send in (others or {}).values():
        send(texts, few)
    sides.static.generate_s(texts, few)


def summary(case: Case, measured: list[dict[str, Numbers]]) -> Numbers:
    numbers = medians(measured)
    for name in numbers:
        if name != READ:
            numbers[name]["x_static"] = ratio(measured, "tokens_per_s", name, STATIC)
    return {"case": asdict(case), "sides": numbers, "rounds": measured}


def compare_shared_prefix(sides: Sides, case: Case, rounds: int) -> Numbers:
    """Of a prefix never seen before, of the same prefix again, and time to first token without and with it."""

    def measure(served: Served, given: list[list[str]]) -> Numbers:
        first, again, *pairs = given
        fresh = streams(served, first, case.new_tokens)
        known = streams(served, again, case.new_tokens)
        times = [[ttft_ms(served, text) for text in pair[:2]] for pair in pairs]
        miss, hit = (statistics.median(column) for column in zip(*times, strict=True))
        found = {"known_tokens_per_s": known["tokens_per_s"], "miss_ms": miss, "hit_ms": hit, "hit_part": hit / miss}
        return {**fresh, **found}

    def given() -> list[list[str]]:
        prefix = sides.prefix(case)
        others = [sides.texts(case, prefix=sides.prefix(case)) for _ in range(3)]
        return [sides.texts(case, prefix=prefix), sides.texts(case, prefix=prefix), *others]

    def generate(given: list[list[str]]) -> Numbers:
        numbers = sides.idle_cpu(lambda: sides.static.generate_s(given[0], case.new_tokens))
        return {**numbers, "tokens_per_s": case.streams * case.new_tokens / numbers["seconds"]}

    warm_up(sides, case)
    served = {name: (lambda given, served=each: measure(served, given)) for name, each in sides.served.items()}
    measured = interleave({**served, STATIC: generate}, given, rounds)
    result = summary(case, measured)
    for name in sides.served:
        known = statistics.median(each[name]["known_tokens_per_s"] / each[STATIC]["tokens_per_s"] for each in measured)
        result["sides"][name]["known_x_static"] = known
    return result
