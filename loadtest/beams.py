"""Beam search of the server beside `generate(num_beams=...)` in the same run, and what beams cost in memory.

    python loadtest/beams.py

Concurrent beam requests over HTTP against a real server process; then the same prompts through transformers, one after
the other and in one static batch. Round by round in turn, so that a slow minute of the machine meets all three. Then
the blocks that one long prompt holds at most with one sequence and with beams.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import threading
import time
import urllib.request
from time import perf_counter
from typing import Any

import httpx2
from arguments import parse
from baseline import StaticBatch
from prompts import prompts
from report import save, table
from rounds import interleave, ratio
from served import NAME, server
from workloads import StreamFailed


async def search_all(url: str, texts: list[str], num_beams: int, new_tokens: int) -> float:
    """Seconds until the last of the concurrent requests is answered."""
    parameters = {"num_beams": num_beams, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "details": True}
    async with httpx2.AsyncClient(timeout=600) as client:
        start = perf_counter()
        calls = [client.post(f"{url}/generate", json={"inputs": text, "parameters": parameters}) for text in texts]
        answers = await asyncio.gather(*calls)
    elapsed_s = perf_counter() - start
    for answer in answers:
        if answer.status_code != 200 or answer.json()["details"]["generated_tokens"] != new_tokens:
            raise StreamFailed(f"A request failed: {answer.text[:300]}")
    return elapsed_s


def most_blocks(url: str, text: str, num_beams: int, new_tokens: int) -> int:
    """The most cache blocks that are held while one request runs."""
    seen = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            with urllib.request.urlopen(f"{url}/metrics") as answer:
                found = re.search(r"^sluice_kv_blocks_used\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
            seen.append(int(float(found[1])) if found else 0)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        asyncio.run(search_all(url, [text], num_beams, new_tokens))
    finally:
        done.set()
        watcher.join()
    return max(seen)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    size, beams, new = args.requests, args.num_beams, args.new_tokens
    with server(["--model", f"{NAME}={args.model}", *args.serve_flags]) as served:
        dtype = served.facts()["dtype"]
        static = StaticBatch(args.model, dtype)

        def texts() -> list[str]:
            return prompts(static.tokenizer, size, args.prompt_tokens, rng)

        def static_s(batches: list[list[str]]) -> float:
            return sum(static.generate_s(batch, new, num_beams=beams) for batch in batches)

        asyncio.run(search_all(served.url, texts(), beams, new))
        static.generate_s(texts(), 2, num_beams=beams)
        sides = {
            "served": lambda texts: {"seconds": asyncio.run(search_all(served.url, texts, beams, new))},
            "one by one": lambda texts: {"seconds": static_s([[text] for text in texts])},
            "static batch": lambda texts: {"seconds": static_s([texts])},
        }
        if not args.one_by_one:
            del sides["one by one"]
        rounds = interleave(sides, texts, args.rounds)
        [long_text] = prompts(static.tokenizer, 1, args.long_prompt_tokens, rng)
        blocks = {number: most_blocks(served.url, long_text, number, new) for number in (1, beams)}
    return {
        "dtype": dtype,
        "requests": size,
        "num_beams": beams,
        "served_tokens_per_s": statistics.median(size * new / each["served"]["seconds"] for each in rounds),
        **{
            f"x_{side.replace(' ', '_')}": ratio(rounds, "seconds", side, "served")
            for side in rounds[0]
            if side != "served"
        },
        "blocks_of_one": blocks[1],
        "blocks_of_beams": blocks[beams],
        "memory_ratio": blocks[beams] / blocks[1],
        "rounds": rounds,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--long-prompt-tokens", type=int, default=1000)
    parser.add_argument("--one-by-one", action=argparse.BooleanOptionalAction, default=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Beam search over HTTP beside model.generate(num_beams=...).")
    add_arguments(parser)
    args = parse(parser, new_tokens=32)
    result = measure(args)
    header = ["requests", "beams", "server tok/s", "x one by one", "x static batch", "blocks 1 / beams", "memory"]
    row = [
        str(result["requests"]),
        str(result["num_beams"]),
        f"{result['served_tokens_per_s']:.1f}",
        f"{result['x_one_by_one']:.2f}" if args.one_by_one else "-",
        f"{result['x_static_batch']:.2f}",
        f"{result['blocks_of_one']} / {result['blocks_of_beams']}",
        f"{result['memory_ratio']:.2f}",
    ]
    print(table(header, [row]))
    print(f"saved to {save('beams', {'arguments': vars(args), 'results': [result]})}")


if __name__ == "__main__":
    main()
