"""Requests that arrive by chance, whether or not earlier ones are done, as users do.

    python loadtest/open_loop.py --url http://127.0.0.1:8000 --scenario chat --rate 0.5 1 2 --duration 60

Arrivals are a Poisson process at each rate in turn. Times count from the moment at which a request was due, so that
a client that falls behind shows as delay and not as less load. Times are of one machine and one run: compare within it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from time import perf_counter, process_time
from typing import Any

from client import Timeline, send
from client import run as run_loop
from report import percentile, save, table

WORDS = ["river", "mill", "stone bridge", "morning", "cart", "hill", "evening", "baker", "price", "winter", "garden"]
OPINIONS = ("I would buy it again.", "It broke after two days.", "It arrived on a Tuesday.", "Worth every penny.")
MAX_CLIENT_CPU = 0.7
MAX_LAG_S = 0.05


def chat(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A short question, an answer of 16 to 64 tokens as it comes, whatever the model would rather say."""
    topic = " and the ".join(rng.sample(WORDS, 3))
    length = rng.randint(16, 64)
    prompt = f"Tell me a story about the {topic}."
    return "/generate", {"inputs": prompt, "stream": True, "parameters": {"max_new_tokens": length, "ignore_eos": True}}


def classify(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One review of one to six sentences."""
    return "/classify", {"inputs": " ".join(rng.choices(OPINIONS, k=rng.randint(1, 6)))}


def classify_burst(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Sixteen reviews in one request."""
    return "/classify", {"inputs": [classify(rng)[1]["inputs"] for _ in range(16)]}


def mix(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Mostly chat; one in four has some 100 tokens to read, one in ten some 500."""
    kind = rng.random()
    path, request = chat(rng)
    if kind < 0.35:
        number = 100 if kind >= 0.1 else 500
        request["inputs"] = " ".join(rng.choices(WORDS, k=number)) + ". " + request["inputs"]
    return path, request


SCENARIOS = {"chat": chat, "mix": mix, "classify": classify, "classify-burst": classify_burst}


async def run(url: str, scenario: str, rate: float, duration_s: float, seed: int) -> dict[str, Any]:
    """Offer ``rate`` requests a second for ``duration_s`` and wait for all answers."""
    rng = random.Random(seed)
    tasks: list[asyncio.Task[Timeline]] = []
    begin, cpu_begin = perf_counter(), process_time()
    due = begin + rng.expovariate(rate)
    while due < begin + duration_s:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        path, body = SCENARIOS[scenario](rng)
        tasks.append(asyncio.create_task(send(url.rstrip("/") + path, body, start=due)))
        due += rng.expovariate(rate)
    timelines = await asyncio.gather(*tasks)
    elapsed_s = perf_counter() - begin
    return summary(timelines, elapsed_s, rate, (process_time() - cpu_begin) / elapsed_s)


def summary(timelines: list[Timeline], elapsed_s: float, rate: float, client_cpu: float) -> dict[str, Any]:
    whole = [timeline for timeline in timelines if timeline.is_whole]
    gaps = [gap for timeline in whole for gap in timeline.gaps_s]
    ttfts = [timeline.ttft_s for timeline in whole if timeline.ttft_s is not None]
    totals = [timeline.end - timeline.start for timeline in whole]
    lag_s = percentile([timeline.sent - timeline.start for timeline in timelines], 95) or 0.0
    return {
        "rate": rate,
        "num_requests": len(timelines),
        "num_whole": len(whole),
        "errors": dict(Counter(timeline.error for timeline in timelines if timeline.error)),
        "answered_per_s": len(whole) / elapsed_s,
        "tokens_per_s": sum(len(timeline.token_times) for timeline in timelines) / elapsed_s,
        **{f"ttft_p{p}_s": percentile(ttfts, p) for p in (50, 95)},
        **{f"gap_p{p}_s": percentile(gaps, p) for p in (50, 95)},
        **{f"total_p{p}_s": percentile(totals, p) for p in (50, 95)},
        "client_cpu": client_cpu,
        "send_lag_p95_s": lag_s,
        "client_kept_up": client_cpu < MAX_CLIENT_CPU and lag_s < MAX_LAG_S,
    }


def _row(result: dict[str, Any]) -> list[str]:
    times = [result[f"{kind}_p{p}_s"] for kind in ("ttft", "gap", "total") for p in (50, 95)]
    return [
        f"{result['rate']:g}",
        f"{result['answered_per_s']:.2f}",
        f"{result['tokens_per_s']:.1f}",
        *("-" if value is None else f"{value * 1000:.0f}" for value in times),
        str(result["num_requests"] - result["num_whole"]),
        f"{result['client_cpu']:.0%}",
    ]


HEADER = ["offered/s", "answered/s", "tokens/s", "TTFT p50 ms", "p95", "gap p50 ms", "p95", "total p50 ms", "p95",
          "errors", "client CPU"]  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description="Open-loop load test of a running server.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="chat")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="requests a second, in turn")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals at each rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = [await run(args.url, args.scenario, rate, args.duration, args.seed) for rate in args.rate]
    print(table(HEADER, [_row(result) for result in results]))
    for result in results:
        if result["errors"]:
            print(f"at {result['rate']:g}/s: {result['errors']}")
        if not result["client_kept_up"]:
            print(f"at {result['rate']:g}/s the client itself was late or busy: these numbers are not the server's")
    print(f"saved to {save(f'open-loop-{args.scenario}', {'arguments': vars(args), 'results': results})}")


if __name__ == "__main__":
    run_loop(main())
