"""One measured request after another, or many at once, and what the times of their tokens say."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from server.commands.http_client import Client, Refused

WORDS = (
    "river mill baker flour morning cart hill evening price window letter garden stone bridge winter train market "
    "paper music table harbour island doctor village summer engine number answer question silver"
)


@dataclass
class Sample:
    """One request: when it began and when each token came, by one clock."""

    started_s: float
    token_times_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.token_times_s, self.token_times_s[1:], strict=False)]


class Prompts:
    """Texts of about so many tokens, no two alike, so that none is found in the prefix cache."""

    def __init__(self, num_tokens: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = WORDS.split()
        self._lock = threading.Lock()
        self._num_tokens = num_tokens
        self._num_words = num_tokens

    def calibrate(self, num_words: int, num_tokens: int) -> None:
        """So many words were so many tokens."""
        self._num_words = max(1, round(num_words * self._num_tokens / max(1, num_tokens)))

    def next(self) -> tuple[str, int]:
        """A text, and how many words it has."""
        with self._lock:
            return " ".join(self._random.choices(self._words, k=self._num_words)), self._num_words


def ask(client: Client, model: str, prompt: str, num_new_tokens: int) -> Sample:
    """Generate exactly so many tokens."""
    parameters = {"max_new_tokens": num_new_tokens, "ignore_eos": True}
    sample = Sample(time.perf_counter())
    try:
        for event in client.stream(
            "/generate", {"model": model, "inputs": prompt, "parameters": parameters, "stream": True}
        ):
            sample.token_times_s.append(time.perf_counter())
            _read_details(sample, event)
    except Refused as error:
        sample.error = str(error)
    if not sample.num_tokens and sample.error is None:
        sample.error = "The stream ended before the response was complete."
    return sample


def _read_details(sample: Sample, event: dict[str, Any]) -> None:
    details = event.get("details")
    if details:
        sample.num_prompt_tokens = details["input_length"]
        sample.num_tokens = details["generated_tokens"]


def closed_loop(pool: ThreadPoolExecutor, one: Callable[[], Sample], num_requests: int) -> list[Sample]:
    """The pool's threads begin their next request when they have an answer."""
    return [future.result() for future in [pool.submit(one) for _ in range(num_requests)]]


def open_loop(
    pool: ThreadPoolExecutor, one: Callable[[], Sample], num_requests: int, rate: float, seed: int
) -> list[Sample]:
    """Requests that arrive by chance, so many a second, whether or not the server keeps up."""
    chance = random.Random(seed)
    futures = []
    arrival_s = time.perf_counter()
    for _ in range(num_requests):
        arrival_s += chance.expovariate(rate)
        time.sleep(max(0.0, arrival_s - time.perf_counter()))
        futures.append(pool.submit(one))
    return [future.result() for future in futures]


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds and tokens a second; what could not be measured is left out."""
    good = [sample for sample in samples if sample.error is None and sample.token_times_s]
    found: dict[str, Any] = {"num_requests": len(samples), "num_failed": len(samples) - len(good)}
    if not good:
        return found
    duration_s = max(sample.token_times_s[-1] for sample in good) - min(sample.started_s for sample in good)
    gaps_s = [gap for sample in good for gap in sample.gaps_s]
    num_tokens = sum(sample.num_tokens for sample in good)
    return found | {
        "duration_s": duration_s,
        "prompt_tokens": sum(sample.num_prompt_tokens for sample in good) / len(good),
        "new_tokens": num_tokens / len(good),
        "tokens_per_s": num_tokens / duration_s,
        "requests_per_s": len(good) / duration_s,
        "ttft_s": _percentiles([sample.ttft_s for sample in good]),
        **({"gap_s": _percentiles(gaps_s)} if gaps_s else {}),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50": percentile(values, 50), "p95": percentile(values, 95)}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent of them do not exceed.

    >>> percentile([4, 1, 3, 2], 50), percentile([4, 1, 3, 2], 95)
    (2, 4)
    """
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]
