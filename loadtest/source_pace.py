"""How evenly streams run while long sources arrive, in the engine alone and by processor time.

    python loadtest/source_pace.py
    python loadtest/source_pace.py --every-s 0.5 --stretch 1.8 2.2

An encoder-decoder of OPUS-MT's base shape with random weights computes eight streams. In every other spell, long
sources arrive at fixed times. A gap is the processor time of a step, so that other work on the machine counts for
little. Sources are encoded in parts, with each of the given stretches of a step, or whole.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import thread_time
from typing import Any

import random_models
from report import percentile, save, table
from rounds import Numbers, interleave, medians, ratio
from served import ROOT

sys.path.insert(0, str(ROOT))

STREAMS, STREAM_SOURCE_TOKENS, STREAM_NEW_TOKENS = 8, 40, 480
LONG_NEW_TOKENS = 8
SETTLE_STEPS = 30
WHOLE = "whole"


class Streams:
    """An engine with streams that never end."""

    def __init__(self, runner: Any, stretch: float, max_model_len: int, long_tokens: int, seed: int) -> None:
        from server.engine import engine, pacing

        self._pacing, self._stretch = pacing, stretch
        # Steps are timed by the same clock that gaps are.
        engine.perf_counter = thread_time  # type: ignore[attr-defined]
        self._rng, self._vocab_size = random.Random(seed), runner.source_vocab_size
        self._long_tokens, self._num_long = long_tokens, 0
        self._stream_tokens = min(STREAM_NEW_TOKENS, max_model_len - 1)
        self._engine = engine.DecoderEngine(
            runner, max_model_len=max_model_len, max_source_len=long_tokens, max_batch_tokens=2048, max_running=64,
            prefix_cache=True, pacing=pacing.Pacing(), token_budget=engine.default_token_budget(runner.device, 64),
        )  # fmt: skip
        self._sources = {f"stream {i}": self._source(STREAM_SOURCE_TOKENS) for i in range(STREAMS)}
        for name in self._sources:
            self._begin(name)
        for _ in range(SETTLE_STEPS):
            self._step()

    def spell(self, spell_s: float, every_s: float | None) -> Numbers:
        """``every_s`` is None for a spell without long sources."""
        # What serves has one stretch.
        self._pacing.STRETCH = self._stretch
        begin = now = thread_time()
        gaps, waits, arrived = [], [], dict[str, float]()
        due = begin if every_s else begin + spell_s
        while now < begin + spell_s or arrived:
            if every_s and due <= now < begin + spell_s:
                arrived[self._begin(f"long {self._num_long}")] = due
                self._num_long, due = self._num_long + 1, due + every_s
            first = self._step()
            before, now = now, thread_time()
            gaps.append(now - before)
            waits += [now - arrived.pop(name) for name in first & arrived.keys()]
        found = {f"gap_{name}_ms": 1e3 * value for name, value in _spread(gaps).items()}
        return {**found, "steps": len(gaps), "ttft_ms": 1e3 * statistics.median(waits) if waits else None}

    def _begin(self, name: str) -> str:
        from server.protocol import Generate, SamplingParams

        is_stream = name in self._sources
        source = self._sources[name] if is_stream else self._source(self._long_tokens)
        params = SamplingParams(max_new_tokens=self._stream_tokens if is_stream else LONG_NEW_TOKENS)
        self._engine.add(Generate(name, [0], params, source_ids=source))
        return name

    def _step(self) -> set[str]:
        """Returns the requests that got tokens."""
        from server.protocol import Failed, Tokens

        answered = set()
        for reply in self._engine.step():
            assert not isinstance(reply, Failed), reply
            if isinstance(reply, Tokens):
                answered.add(reply.request_id)
                if reply.finish_reason and reply.request_id in self._sources:
                    self._begin(reply.request_id)
        return answered

    def _source(self, length: int) -> list[int]:
        return [self._rng.randrange(3, self._vocab_size - 1) for _ in range(length)]


def _spread(values: list[float]) -> Numbers:
    return {"p50": percentile(values, 50), "p95": percentile(values, 95), "max": max(values)}


def measure(args: argparse.Namespace) -> Numbers:
    from server.config import ModelConfig
    from server.engine.executors import build_runner
    from server.models.loader import load

    folder = args.model or str(random_models.folder_of("opus-mt-base"))
    model = ModelConfig(name="bench", path=folder, dtype=args.dtype, threads=1, kv_cache_gib=0.5)
    use_kernels()
    loaded = load(model)
    runner: Any = build_runner(loaded.module, model, loaded.max_model_len, max_source_len=args.long_tokens)
    passes = runner.encoder_passes
    streams: dict[str, Streams] = {}
    for name, stretch in {WHOLE: 2.2, **{f"stretch {stretch}": stretch for stretch in args.stretch}}.items():
        runner.encoder_passes = replace(passes, can_cut=name != WHOLE)
        streams[name] = Streams(runner, stretch, loaded.max_model_len, args.long_tokens, seed=0)
    return dict(_compare(streams, args.rounds, args.spell_s, args.every_s))


def _compare(streams: dict[str, Streams], rounds: int, spell_s: float, every_s: float) -> Iterator[tuple[str, Numbers]]:
    sides = {
        f"{name}, {when}": lambda _given, each=each, gap_s=gap_s: each.spell(spell_s, gap_s)
        for name, each in streams.items()
        for when, gap_s in (("without", None), ("with", every_s))
    }
    measured = interleave(sides, lambda: None, rounds)
    middle = medians(measured)
    for name in streams:
        gaps = {
            f"x_{key}": ratio(measured, f"gap_{key}_ms", f"{name}, with", f"{name}, without")
            for key in ("p50", "p95", "max")
        }
        yield name, {**gaps, "without": middle[f"{name}, without"], "with": middle[f"{name}, with"]}


def use_kernels() -> None:
    import torch

    from server.native import kernels

    torch.set_num_threads(1)
    kernels.use("auto", 1)


def shown(found: Numbers) -> str:
    heads = ["p95 gap, ms", "with sources", "ratio", "longest gap, ms", "with sources", "first token, ms"]
    rows = []
    for name, each in found.items():
        without, sources = each["without"], each["with"]
        cells = [without["gap_p95_ms"], sources["gap_p95_ms"], each["x_p95"], without["gap_max_ms"],
                 sources["gap_max_ms"], sources["ttft_ms"]]  # fmt: skip
        rows.append([name, *(f"{cell:.1f}" for cell in cells)])
    return table(["", *heads], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stretch", type=float, nargs="+", default=[2.0], help="how many times as long a step may take"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spell-s", type=float, default=5.0, help="of processor time")
    parser.add_argument("--every-s", type=float, default=1.0, help="a source arrives, in processor time")
    parser.add_argument("--long-tokens", type=int, default=512, help="of a source that arrives")
    parser.add_argument("--model", help="a folder with an encoder-decoder of one's own")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    found = measure(args)
    print(shown(found))
    print(f"saved to {save('source-pace', {'arguments': vars(args), 'results': found})}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
