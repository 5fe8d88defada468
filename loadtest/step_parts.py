"""One decoding step of the engine, split by part, in a process like a worker's.

    python loadtest/step_parts.py --rows 1 8 32 --context 256 -- --quantize int8
    python loadtest/step_parts.py --rows 8 32 --context 1024 --beside "--kv-dtype int8"

Runs the engine without the front. Each round measures every number of rows twice: as it is, and with timers around
its parts, so that what the timers cost is known. With ``--beside`` it also measures an engine with further flags, in
turn, and prints its times as a part of the first one's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from arguments import DEFAULT_MODEL
from part_timer import ATTENTION, PARTS, PartTimer
from plan import Plan
from report import table
from rounds import Numbers, median
from served import ROOT

sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from server.config import ModelConfig

MARGIN_TOKENS = 40


def in_a_process(plan: Plan, flags: list[str]) -> Numbers:
    """What `measure` finds in a process of its own, with the environment of a worker."""
    from server.client.environment import environment

    arguments = ["--model", plan.model, "--rounds", str(plan.rounds), "--json"]
    arguments += ["--rows", *plan.pick(["1", "8", "32"], ["1", "3"]), "--context", plan.pick("256", "48")]
    arguments += ["--steps", plan.pick("30", "4")]
    command = [sys.executable, str(Path(__file__)), *arguments, "--", *flags]
    run = subprocess.run(
        command, env=environment(model_config(plan.model, flags).threads), capture_output=True, text=True, check=False
    )
    if run.returncode:
        return {"error": (run.stderr.strip() or "it ended").splitlines()[-1]}
    numbers: Numbers = json.loads(run.stdout.splitlines()[-1])
    return numbers


class Decoding:
    """An engine that decodes so many rows at about one length of context; the prompts are known after the first."""

    def __init__(self, engine: Any, vocab_size: int, context: int, num_steps: int) -> None:
        self._engine = engine
        self._context, self._num_steps = context, num_steps
        self._rng = random.Random(0)
        self._vocab_size = vocab_size
        self._prompts: list[list[int]] = []
        self._ids = itertools.count()

    def step_times(self, num_rows: int, timer: PartTimer | None = None, adapters: Sequence[str] = ("",)) -> list[float]:
        """Seconds of each step, with nothing but decoding in it. The rows take the ``adapters`` in turn, by digest."""
        ids = self._start(num_rows, adapters)
        times = []
        for _ in range(self._num_steps):
            start = perf_counter()
            if timer is None:
                self._engine.step()
            else:
                with timer.measuring():
                    self._engine.step()
            times.append(perf_counter() - start)
        for request_id in ids:
            self._engine.abort(request_id)
        self._engine.step()
        return times

    def _start(self, num_rows: int, adapters: Sequence[str]) -> list[str]:
        from server.protocol import Generate, SamplingParams

        length = max(1, self._context - self._num_steps // 2)
        while len(self._prompts) < num_rows:
            self._prompts.append([self._rng.randrange(self._vocab_size) for _ in range(length)])
        # More than the first rows can use up while the prompts of the last ones come in at the engine's pace.
        params = SamplingParams(max_new_tokens=self._num_steps + MARGIN_TOKENS * num_rows, ignore_eos=True, seed=0)
        ids = [f"bench-{next(self._ids)}" for _ in range(num_rows)]
        for request_id, prompt, adapter in zip(ids, self._prompts, itertools.cycle(adapters), strict=False):
            self._engine.add(Generate(request_id, prompt, params, adapter=adapter))
        while self._engine.has_work:
            stats = self._engine.step()[-1]
            if stats.batch_size == num_rows and stats.batch_tokens == num_rows and not stats.started:
                return ids
        raise SystemExit(f"{num_rows} rows never decoded together.")


class Measured:
    """What one engine's steps take, round by round."""

    def __init__(self, decoding: Decoding, vocab_size: int, rows: list[int]) -> None:
        self._decoding, self._vocab_size, self._rows = decoding, vocab_size, rows
        self._plain: dict[int, list[float]] = {each: [] for each in rows}
        self._parts: dict[int, list[dict[str, float]]] = {each: [] for each in rows}
        for each in rows:
            decoding.step_times(each)

    def measure(self, num_rows: int) -> None:
        self._plain[num_rows].append(1e3 * statistics.median(self._decoding.step_times(num_rows)))
        timer = PartTimer(self._vocab_size)
        with timer.patched():
            steps = self._decoding.step_times(num_rows, timer)
        self._parts[num_rows].append({part: 1e3 * timer.seconds[part] / len(steps) for part in PARTS})

    def numbers(self) -> list[Numbers]:
        """For each number of rows: median milliseconds of a step without timers, and mean milliseconds of its parts."""
        return [
            {
                "rows": each,
                "step_ms": median(self._plain[each]),
                "timed_step_ms": median(sum(found.values()) for found in self._parts[each]),
                "parts_ms": {part: median(found[part] for found in self._parts[each]) for part in PARTS},
            }
            for each in self._rows
        ]


def measure(engines: list[tuple[Decoding, Numbers]], rows: list[int], rounds: int) -> list[list[Numbers]]:
    """Of each engine, in turn."""
    measured = [Measured(decoding, facts["vocab_size"], rows) for decoding, facts in engines]
    for _ in range(rounds):
        for each in rows:
            for one in measured:
                one.measure(each)
    return [one.numbers() for one in measured]


def as_parts_of(first: list[Numbers], other: list[Numbers]) -> list[list[str]]:
    """The other engine's step and attention per number of rows, as parts of the first one's."""
    return [
        [
            str(a["rows"]),
            f"{b['step_ms'] / a['step_ms']:.2f}",
            f"{b['parts_ms'][ATTENTION] / a['parts_ms'][ATTENTION]:.2f}",
        ]
        for a, b in zip(first, other, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="One decoding step of the engine, split by part.")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="the last line is JSON, for another program")
    parser.add_argument("--beside", metavar="FLAGS", help="also an engine with these further flags for sluice serve")
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()
    engines = [build(args, [])] + ([build(args, args.beside.split())] if args.beside else [])
    results = measure(engines, args.rows, args.rounds)
    for found in results:
        rows = [
            [str(each["rows"]), f"{each['step_ms']:.1f}", *(f"{each['parts_ms'][part]:.1f}" for part in PARTS)]
            for each in found
        ]
        print(table(["rows", "step ms", *PARTS], rows))
    if args.beside:
        print(table(["rows", f"step, {args.beside}", "attention"], as_parts_of(*results)))
    if args.json:
        print(json.dumps({**engines[0][1], "context": args.context, "steps": results[0]}))


def build(args: argparse.Namespace, more_flags: list[str]) -> tuple[Decoding, Numbers]:
    import torch

    from server.worker.__main__ import build

    config = model_config(args.model, [flag for flag in args.serve_flags if flag != "--"] + more_flags)
    torch.set_num_threads(config.threads or int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    engine, ready = build(config)
    facts = {"dtype": ready.dtype, "executor": ready.executor, "attention": ready.attention}
    return Decoding(engine, ready.vocab_size, args.context, args.steps), {**facts, "vocab_size": ready.vocab_size}


def model_config(model: str, flags: list[str]) -> ModelConfig:
    """The model's settings, read as `sluice serve` reads them."""
    from server import settings

    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    return settings.load(parser.parse_args(["--model", f"bench={model}", *flags])).models[0]


if __name__ == "__main__":
    main()
