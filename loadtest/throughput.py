"""Output tokens a second of the server, beside transformers' `generate` on the same prompts in the same run.

    python loadtest/throughput.py

Concurrent streams over HTTP against a real server process, and `generate` with one static batch of the same size, in
turn, round by round. While one computes the other waits (the server's processor time during `generate` is printed).
"""

from __future__ import annotations

import argparse

from arguments import parse
from comparison import STATIC, Case, compare, opened
from plan import Plan
from report import save, table
from rounds import Numbers


def measure(args: argparse.Namespace) -> list[Numbers]:
    plan = Plan(model=args.model, rounds=args.rounds, seed=args.seed)
    with opened(plan, args.model, {"served": args.serve_flags}) as sides:
        facts = sides.facts()["served"]
        print(
            f"{facts['architecture']}, {facts['dtype']}, executor {facts['executor']}, attention {facts['attention']}"
        )
        return [compare(sides, Case(size, args.prompt_tokens, args.new_tokens), args.rounds) for size in args.streams]


def main() -> None:
    parser = argparse.ArgumentParser(description="The server's output tokens/s beside those of model.generate.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    args = parse(parser, new_tokens=64)
    results = measure(args)
    rows = [
        [
            str(result["case"]["streams"]),
            f"{result['sides']['served']['tokens_per_s']:.1f}",
            f"{result['sides'][STATIC]['tokens_per_s']:.1f}",
            f"{result['sides']['served']['x_static']:.2f}",
            f"{result['sides'][STATIC]['idle_server_cpu']:.1%}",
        ]
        for result in results
    ]
    print(table(["streams", "server tok/s", "generate tok/s", "ratio", "idle server CPU"], rows))
    print(f"saved to {save('throughput', {'arguments': vars(args), 'results': results})}")


if __name__ == "__main__":
    main()
