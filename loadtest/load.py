"""Load on a running server: requests that arrive by chance, as users do, or clients that each wait for their answer.

An open loop shows latency: arrivals are a Poisson process, and times count from the moment at which a request was due,
so that a client that falls behind shows as delay and not as less load. A closed loop shows the peak, and no latency
that a user would see: it asks for less as the server slows down.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

from client import Timeline, send
from report import percentile
from scenarios import Limits, Scenario

MAX_CLIENT_CPU = 0.7
MAX_LAG_S = 0.05
GOOD_SHARE = 0.95
"""So many of a rate's requests must be whole and within the limits, or the rate is too high."""
REFUSALS = (429, 503)


async def open_loop(url: str, scenario: Scenario, rate: float, duration_s: float, seed: int) -> dict[str, Any]:
    """Offer ``rate`` requests a second for ``duration_s`` and wait for all answers."""
    rng = random.Random(seed)
    tasks: list[asyncio.Task[Timeline]] = []
    begin, cpu_begin = perf_counter(), process_time()
    due = begin + rng.expovariate(rate)
    while due < begin + duration_s:
        await asyncio.sleep(max(0.0, due - perf_counter()))
        route, body = scenario.draw(rng)
        tasks.append(asyncio.create_task(send(url.rstrip("/") + route, body, start=due)))
        due += rng.expovariate(rate)
    timelines = await asyncio.gather(*tasks)
    elapsed_s = perf_counter() - begin
    cpu = (process_time() - cpu_begin) / elapsed_s
    return {"rate": rate, **summary(timelines, elapsed_s, cpu, scenario.limits)}


async def closed_loop(url: str, scenario: Scenario, clients: int, duration_s: float, seed: int) -> dict[str, Any]:
    """So many clients for ``duration_s``; what is under way then is waited for."""
    rng = random.Random(seed)
    timelines: list[Timeline] = []
    begin, cpu_begin = perf_counter(), process_time()

    async def client() -> None:
        while perf_counter() < begin + duration_s:
            route, body = scenario.draw(rng)
            timelines.append(await send(url.rstrip("/") + route, body))

    await asyncio.gather(*(client() for _ in range(clients)))
    elapsed_s = perf_counter() - begin
    cpu = (process_time() - cpu_begin) / elapsed_s
    return {"clients": clients, **summary(timelines, elapsed_s, cpu, scenario.limits)}


def summary(timelines: Sequence[Timeline], elapsed_s: float, client_cpu: float, limits: Limits) -> dict[str, Any]:
    """What the clients saw. Percentiles are of whole answers, ``good_share`` is of all requests."""
    whole = [timeline for timeline in timelines if timeline.is_whole]
    ttfts = [timeline.ttft_s for timeline in whole if timeline.ttft_s is not None]
    totals = [timeline.end - timeline.start for timeline in whole]
    lag_s = percentile([timeline.sent - timeline.start for timeline in timelines], 95) or 0.0
    outcomes = Counter(_outcome(timeline, limits) for timeline in timelines)
    times = {
        "ttft": ttfts,
        "gap": [gap for timeline in whole for gap in timeline.gaps_s],
        "total": totals,
        "queue": [timeline.queue_s for timeline in whole if timeline.queue_s is not None],
    }
    return {
        "num_requests": len(timelines),
        "num_whole": len(whole),
        "errors": dict(Counter(timeline.error for timeline in timelines if timeline.error)),
        "outcomes": dict(outcomes),
        "good_share": outcomes["good"] / len(timelines) if timelines else None,
        "answered_per_s": len(whole) / elapsed_s,
        "tokens_per_s": sum(len(timeline.token_times) for timeline in timelines) / elapsed_s,
        "mean_active": sum(totals) / elapsed_s,
        **{f"{kind}_p{p}_s": percentile(values, p) for kind, values in times.items() for p in (50, 95, 99)},
        "client_cpu": client_cpu,
        "send_lag_p95_s": lag_s,
        "client_kept_up": client_cpu < MAX_CLIENT_CPU and lag_s < MAX_LAG_S,
    }


def _outcome(timeline: Timeline, limits: Limits) -> str:
    if limits.are_kept(timeline):
        return "good"
    if timeline.is_whole:
        return "late"
    return "refused" if timeline.status in REFUSALS else "failed"


def is_good(point: dict[str, Any]) -> bool:
    return point["good_share"] is not None and point["good_share"] >= GOOD_SHARE


def knee(points: Sequence[dict[str, Any]]) -> float | None:
    """The highest rate up to which every rate was good: the goodput. None if the lowest was not."""
    found = None
    for point in sorted(points, key=lambda each: each["rate"]):
        if not is_good(point):
            break
        found = float(point["rate"])
    return found


async def search_knee(
    url: str, scenario: Scenario, points: list[dict[str, Any]], duration_s: float, seed: int, steps: int
) -> None:
    """Add points between the last good rate and the first that was not, halving the distance each time."""
    for _ in range(steps):
        low = knee(points)
        above = [point["rate"] for point in points if not is_good(point) and point["rate"] > (low or 0.0)]
        if low is None or not above:
            return
        points.append(await open_loop(url, scenario, (low + min(above)) / 2, duration_s, seed))
        points.sort(key=lambda each: each["rate"])
