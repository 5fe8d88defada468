"""Beam search of the server beside `generate(num_beams=...)` in the same run, and what beams cost in memory.

    python loadtest/beams.py

Concurrent beam requests over HTTP against a real server process; then the same prompts through transformers, one after
the other and in one static batch. Round by round in turn, so that a slow minute of the machine meets all three. Then
the blocks that one long prompt holds at most with one sequence and with beams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import threading
import time
import urllib.request
from time import perf_counter
from typing import Any

import httpx2
import torch
import transformers
from report import save, table
from throughput import PAUSE_S, parse, prompts, server


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
            raise SystemExit(f"A request failed: {answer.text[:300]}")
    return elapsed_s


def generate_all(model: Any, tokenizer: Any, batches: list[list[str]], num_beams: int, new_tokens: int) -> float:
    """Seconds of the batches, one after the other."""
    start = perf_counter()
    for texts in batches:
        inputs = tokenizer(texts, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=False,
                num_beams=num_beams,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
            )
        assert output.shape[1] == inputs["input_ids"].shape[1] + new_tokens
    return perf_counter() - start


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
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    rng = random.Random(args.seed)
    size, beams, new = args.requests, args.num_beams, args.new_tokens
    rounds = []
    with server(args.model, args.serve_flags) as (url, _):
        with urllib.request.urlopen(f"{url}/info") as answer:
            dtype = json.load(answer)["models"][0]["dtype"]
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, dtype)).eval()
        for index in range(args.rounds + 1):
            texts = prompts(tokenizer, size, args.prompt_tokens, rng)
            served_s = asyncio.run(search_all(url, texts, beams, new))
            time.sleep(PAUSE_S)
            each_s = generate_all(model, tokenizer, [[text] for text in texts], beams, new)
            batch_s = generate_all(model, tokenizer, [texts], beams, new)
            time.sleep(PAUSE_S)
            # The first round warms all of them up.
            if index > 0:
                rounds.append({"served_s": served_s, "one_by_one_s": each_s, "static_batch_s": batch_s})
                print(f"round {index}: {each_s / served_s:.2f} x, {batch_s / served_s:.2f} x", flush=True)
        [long_text] = prompts(tokenizer, 1, args.long_prompt_tokens, rng)
        blocks = {number: most_blocks(url, long_text, number, new) for number in (1, beams)}
    return {
        "dtype": dtype,
        "requests": size,
        "num_beams": beams,
        "served_tokens_per_s": statistics.median(size * new / each["served_s"] for each in rounds),
        "ratio_one_by_one": statistics.median(each["one_by_one_s"] / each["served_s"] for each in rounds),
        "ratio_static_batch": statistics.median(each["static_batch_s"] / each["served_s"] for each in rounds),
        "blocks_of_one": blocks[1],
        "blocks_of_beams": blocks[beams],
        "memory_ratio": blocks[beams] / blocks[1],
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Beam search over HTTP beside model.generate(num_beams=...).")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--long-prompt-tokens", type=int, default=1000)
    args = parse(parser, new_tokens=32)
    result = measure(args)
    header = ["requests", "beams", "server tok/s", "x one by one", "x static batch", "blocks 1 / beams", "memory"]
    row = [
        str(result["requests"]),
        str(result["num_beams"]),
        f"{result['served_tokens_per_s']:.1f}",
        f"{result['ratio_one_by_one']:.2f}",
        f"{result['ratio_static_batch']:.2f}",
        f"{result['blocks_of_one']} / {result['blocks_of_beams']}",
        f"{result['memory_ratio']:.2f}",
    ]
    print(table(header, [row]))
    print(f"saved to {save('beams', {'arguments': vars(args), 'results': [result]})}")


if __name__ == "__main__":
    main()
