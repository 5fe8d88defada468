"""What concurrent clients do to a server, and what they and the server then know of it.

Every function returns numbers by name; ``_ms`` and ``_s`` are times, ``client_cpu`` and ``front_cpu`` parts of a core.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter, process_time

from client import Timeline, run, send
from report import percentile
from rounds import Numbers
from served import Served, Usage

MAX_CLIENT_CPU = 0.2
"""Of a core. Above it the numbers are the client's too."""


class StreamFailed(Exception):
    """A stream that should have been answered was not, or not to its end."""


def body(text: str, new_tokens: int) -> dict[str, object]:
    """A greedy stream of exactly so many tokens."""
    fixed = {"max_new_tokens": new_tokens, "ignore_eos": True, "do_sample": False}
    return {"inputs": text, "stream": True, "parameters": fixed}


def streams(served: Served, texts: Sequence[str], new_tokens: int) -> Numbers:
    """All texts at once, each a stream."""
    before, cpu_before = served.usage(), process_time()
    start = perf_counter()
    timelines = run(_send_all(served, texts, new_tokens))
    elapsed_s = max(timeline.end for timeline in timelines) - start
    client_cpu = (process_time() - cpu_before) / elapsed_s
    if client_cpu > MAX_CLIENT_CPU:
        print(f"the client took {client_cpu:.0%} of a core from the server with {len(texts)} streams", flush=True)
    usage = served.usage() - before
    return {
        "seconds": elapsed_s,
        "tokens_per_s": len(texts) * new_tokens / elapsed_s,
        "ttft_ms": 1e3 * statistics.median(timeline.ttft_s or 0.0 for timeline in timelines),
        "client_cpu": client_cpu,
        **_decoding(timelines),
        **_of_server(usage, elapsed_s),
    }


def ttft_ms(served: Served, text: str) -> float:
    """Time to first token of one request alone."""
    [timeline] = run(_send_all(served, [text], 1))
    return 1e3 * (timeline.ttft_s or 0.0)


def _decoding(timelines: Sequence[Timeline]) -> Numbers:
    """Of the time in which all streams run."""
    begin = max(timeline.token_times[0] for timeline in timelines)
    times = [[at for at in timeline.token_times if at >= begin] for timeline in timelines]
    gaps = [1e3 * (later - earlier) for each in times for earlier, later in pairwise(each)]
    if not gaps:
        return {}
    per_step = statistics.median((each[-1] - each[0]) / (len(each) - 1) for each in times if len(each) > 1)
    return {"decode_ms": 1e3 * per_step, "gap_p50_ms": percentile(gaps, 50), "gap_p95_ms": percentile(gaps, 95)}


def _of_server(usage: Usage, elapsed_s: float) -> Numbers:
    """Where the server's time went. Between the steps lie the wire between the processes, and waiting."""
    steps = max(usage.steps, 1)
    return {
        "front_cpu": usage.front_cpu_s / elapsed_s,
        "front_cpu_ms": 1e3 * usage.front_cpu_s / steps,
        "worker_cpu": usage.worker_cpu_s / elapsed_s,
        "steps": usage.steps,
        "step_ms": 1e3 * usage.step_s / steps,
        "forward_ms": 1e3 * usage.forward_s / steps,
        "engine_ms": 1e3 * (usage.step_s - usage.forward_s) / steps,
        "between_steps_ms": 1e3 * (elapsed_s - usage.step_s) / steps,
    }


async def _send_all(served: Served, texts: Sequence[str], new_tokens: int) -> list[Timeline]:
    timelines = await asyncio.gather(*(send(f"{served.url}/generate", body(text, new_tokens)) for text in texts))
    for timeline in timelines:
        if not timeline.is_whole or len(timeline.token_times) != new_tokens:
            raise StreamFailed(f"A stream ended with {timeline.error} after {len(timeline.token_times)} tokens.")
    return timelines
