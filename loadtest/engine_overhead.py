"""What the engine adds to the model's forward pass, a step, in milliseconds: median, 95th percentile, CPU time.

    python loadtest/engine_overhead.py

The runner returns logits that were computed before, so all that is measured is ours: scheduling, batch inputs,
sampling, replies. The logits have the width of a real vocabulary and are about as peaked as a language model's.
On a busy machine the wall time measures the neighbours: read the CPU time then, with one thread.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from server.engine import batch_inputs
from server.engine.batch_inputs import Row
from server.engine.engine import DecoderEngine
from server.engine.model_runner import ModelRunner
from server.native import kernels
from server.protocol import Generate, SamplingParams, Stats

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, logprobs": {"logprobs": True},
    "top_k 50, top_p 0.95": SAMPLED,
    "top_k 50, top_p 0.95, logprobs": {**SAMPLED, "logprobs": True},
    "temperature only": {"do_sample": True, "temperature": 0.8},
    "top_p 0.95 only": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    "greedy, repetition penalty": {"repetition_penalty": 1.1},
    "typical_p 0.9": {"do_sample": True, "typical_p": 0.9},
    "greedy, 5 most likely told": {"top_n_tokens": 5},
    "all processors": {
        "sequence_bias": tuple(((i, i + 1, i + 2), -1.0) for i in range(0, 300, 3)),
        "logit_bias": dict.fromkeys(range(300), 0.5),
        "encoder_repetition_penalty": 1.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "penalty_scope": "both",
        "dry_multiplier": 0.8,
        "dry_breaker_ids": tuple(range(40)),
        "no_repeat_ngram_size": 4,
        "encoder_no_repeat_ngram_size": 4,
        "min_new_tokens": 700,
        "allowed_token_ids": tuple(range(49_000)),
        "forced_bos_token_id": 5,
        "forced_eos_token_ids": (0,),
        "exponential_decay_length_penalty": (5, 1.0001),
        "suppress_tokens": tuple(range(100, 200)),
        "begin_suppress_tokens": (1, 2),
        "stop_token_ids": (0,),
    },
}
DRAW: dict[str, Any] = {
    **SAMPLED,
    "top_n_sigma": 3.0,
    "min_p": 0.001,
    "typical_p": 0.99,
    "epsilon_cutoff": 1e-5,
    "eta_cutoff": 1e-5,
    "xtc_probability": 0.5,
    "renormalize_logits": True,
}
CASES["all processors, all of the draw"] = {**CASES["all processors"], **DRAW}
CASES["the same, and 5 most likely told"] = {**CASES["all processors"], **DRAW, "top_n_tokens": 5}


class RecordedRunner(ModelRunner):
    """Builds the step's inputs as a real runner does and returns logits from a store."""

    name = "recorded"
    attention = "none"
    device = torch.device("cpu")
    dtype = torch.float32
    block_size = 32
    kv_cache_bytes = 0
    can_reuse_blocks = True

    def __init__(self, vocab_size: int, max_rows: int, num_blocks: int) -> None:
        self.vocab_size = vocab_size
        self.num_blocks = num_blocks
        self._store = peaked_logits(4, max_rows, vocab_size)
        self._logits = torch.empty(max_rows, vocab_size)
        self._num_steps = 0
        self.excluded_s = 0.0
        self.excluded_cpu_s = 0.0

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        inputs = batch_inputs.build(rows, self.block_size, self.device)
        start, start_cpu = perf_counter(), process_time()
        self._num_steps += 1
        num_rows = len(inputs.wanted_R)
        # The engine may change the logits: the store stays as it is.
        logits = self._logits[:num_rows].copy_(self._store[self._num_steps % len(self._store), :num_rows])
        self.excluded_s = perf_counter() - start
        self.excluded_cpu_s = process_time() - start_cpu
        return logits

    def release(self, key: int) -> None:
        pass

    def fork(self, parent_key: int, child_key: int) -> None:
        pass

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        pass

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        pass


def peaked_logits(num_sets: int, num_rows: int, vocab_size: int) -> torch.Tensor:
    """Random logits with Zipf's falling-off, shuffled over the vocabulary: a nucleus of tens of tokens."""
    generator = np.random.default_rng(0)
    falling = -1.3 * np.log(np.arange(1, vocab_size + 1))
    shape = (num_sets, num_rows, vocab_size)
    noise = generator.normal(scale=0.7, size=shape).astype(np.float32)
    columns = generator.permuted(np.broadcast_to(falling.astype(np.float32), shape), axis=-1)
    return torch.from_numpy(columns + noise)


class Overhead:
    """An engine whose batch stays full, with requests that wait behind it, and the times of its steps so far."""

    def __init__(self, num_running: int, num_waiting: int, params: dict[str, Any], vocab_size: int) -> None:
        self._num_running = num_running
        self._runner = RecordedRunner(vocab_size, num_running, num_blocks=num_running * 40)
        self._engine = DecoderEngine(
            self._runner, max_model_len=1024, max_batch_tokens=8192, max_running=num_running, prefix_cache=True
        )
        generator = np.random.default_rng(1)
        for i in range(num_running + num_waiting):
            prompt = generator.integers(vocab_size, size=200 if i < num_running else 4).tolist()
            self._engine.add(Generate(str(i), prompt, SamplingParams(max_new_tokens=800, seed=i, **params)))
        self._times_ms: list[float] = []
        self._cpu_times_ms: list[float] = []
        gc.collect()
        while self._engine.scheduler.num_running < num_running:
            self._engine.step()
        self.run(10)
        self._times_ms, self._cpu_times_ms = [], []

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            start, start_cpu = perf_counter(), process_time()
            stats = self._engine.step()[-1]
            elapsed_s = perf_counter() - start - self._runner.excluded_s
            elapsed_cpu_s = process_time() - start_cpu - self._runner.excluded_cpu_s
            assert isinstance(stats, Stats)
            assert stats.num_running == self._num_running, "the batch is not full"
            self._times_ms.append(elapsed_s * 1e3)
            self._cpu_times_ms.append(elapsed_cpu_s * 1e3)

    def summary(self) -> dict[str, float]:
        median, p95 = np.percentile(self._times_ms, [50, 95])
        return {"median_ms": float(median), "p95_ms": float(p95), "cpu_ms": float(np.median(self._cpu_times_ms))}


def of_waiting(numbers: Sequence[int], vocab_size: int, num_steps: int, num_rounds: int = 10) -> list[dict[str, float]]:
    """A step's overhead with 32 running and so many waiting, a few steps of each in turn."""
    cases = [Overhead(32, number, {}, vocab_size) for number in numbers]
    for _ in range(num_rounds):
        for case in cases:
            case.run(num_steps // num_rounds)
    return [{"waiting": number, **case.summary()} for number, case in zip(numbers, cases, strict=True)]


def _shown(summary: dict[str, float]) -> str:
    return " ".join(f"{summary[key]:8.3f}" for key in ("median_ms", "p95_ms", "cpu_ms"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be given again")
    parser.add_argument("--kernels", choices=("auto", "native", "torch"), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    used = kernels.use(options.kernels, options.threads)
    print(
        f"vocabulary {options.vocab_size}, {options.threads} threads, kernels {used}; "
        f"ms a step over {options.steps}: median, p95, CPU"
    )
    for name in options.case or CASES:
        params = CASES[name]
        for num_running in (1, 8, 32, 128):
            case = Overhead(num_running, 0, params, options.vocab_size)
            case.run(options.steps)
            print(f"{name:32} {num_running:4} running {0:6} waiting {_shown(case.summary())}", flush=True)
    if not options.case:
        for found in of_waiting((10, 10_000), options.vocab_size, options.steps):
            print(f"{'greedy':32} {32:4} running {found['waiting']:6} waiting {_shown(found)}", flush=True)


if __name__ == "__main__":
    main()
