"""Output tokens a second of the server, beside transformers' `generate` on the same prompts in the same run.

    python loadtest/throughput.py

Concurrent streams over HTTP against a real server process, and `generate` with one static batch of the same size, in
turn, round by round: a slow minute of the machine meets both. While one computes the other waits (the server's
processor time during `generate` is measured and printed). Every prompt is new, so the prefix cache has nothing to give.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
import transformers
from client import send
from report import save, table

ROOT = Path(__file__).parents[1]
PAUSE_S = 0.5
"""Between the two sides, for threads that still spin."""


def prompts(tokenizer: Any, number: int, num_tokens: int, rng: random.Random) -> list[str]:
    """Texts of exactly ``num_tokens`` tokens: words that are one token each, in random order."""
    words = [text for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))]) if _is_word(text)]
    texts: list[str] = []
    while len(texts) < number:
        text = "".join(rng.choices(words, k=num_tokens))
        if len(tokenizer(text)["input_ids"]) == num_tokens:
            texts.append(text)
    return texts


def _is_word(text: str) -> bool:
    return text.startswith(" ") and len(text) > 3 and text[1:].isascii() and text[1:].isalpha() and text[1:].islower()


@contextmanager
def server(model: str, flags: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server process of its own on a free port, ready; its URL and handle."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--model", f"bench={model}", *flags]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"The server ended:\n{log.read().decode()}")
                time.sleep(0.2)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def cpu_time_s(process: psutil.Process) -> float:
    """Processor time of the server and its workers so far."""
    tree = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in tree)


async def stream_all(url: str, texts: list[str], new_tokens: int) -> float:
    """Seconds until the last of the concurrent streams has all its tokens."""
    fixed = {"max_new_tokens": new_tokens, "ignore_eos": True, "do_sample": False}
    bodies = [{"inputs": text, "stream": True, "parameters": fixed} for text in texts]
    start = perf_counter()
    timelines = await asyncio.gather(*(send(f"{url}/generate", body) for body in bodies))
    for timeline in timelines:
        if not timeline.is_whole or len(timeline.token_times) != new_tokens:
            raise SystemExit(f"A stream ended with {timeline.error} after {len(timeline.token_times)} tokens.")
    return max(timeline.end for timeline in timelines) - start


def generate_all(model: Any, tokenizer: Any, texts: list[str], new_tokens: int) -> float:
    """Seconds of one static batch in process."""
    inputs = tokenizer(texts, return_tensors="pt")
    start = perf_counter()
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    elapsed_s = perf_counter() - start
    assert output.shape[1] == inputs["input_ids"].shape[1] + new_tokens
    return elapsed_s


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    rng = random.Random(args.seed)
    results = []
    with server(args.model, args.serve_flags) as (url, process):
        with urllib.request.urlopen(f"{url}/info") as answer:
            facts = json.load(answer)["models"][0]
        print(
            f"{facts['architecture']}, {facts['dtype']}, executor {facts['executor']}, attention {facts['attention']}"
        )
        dtype = getattr(torch, facts["dtype"])
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
        for size in args.streams:
            rounds = []
            for index in range(args.rounds + 1):
                texts = prompts(tokenizer, size, args.prompt_tokens, rng)
                served_s = asyncio.run(stream_all(url, texts, args.new_tokens))
                time.sleep(PAUSE_S)
                cpu_before = cpu_time_s(process)
                generated_s = generate_all(model, tokenizer, texts, args.new_tokens)
                idle_cpu = (cpu_time_s(process) - cpu_before) / generated_s
                time.sleep(PAUSE_S)
                # The first round warms both up.
                if index > 0:
                    rounds.append({"served_s": served_s, "generated_s": generated_s, "idle_server_cpu": idle_cpu})
            results.append(summary(size, size * args.new_tokens, rounds))
            print(f"{size} streams: ratio {results[-1]['ratio']:.2f}", flush=True)
    return results


def summary(size: int, num_tokens: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "streams": size,
        "served_tokens_per_s": statistics.median(num_tokens / each["served_s"] for each in rounds),
        "generate_tokens_per_s": statistics.median(num_tokens / each["generated_s"] for each in rounds),
        "ratio": statistics.median(each["generated_s"] / each["served_s"] for each in rounds),
        "idle_server_cpu": max(each["idle_server_cpu"] for each in rounds),
        "rounds": rounds,
    }


def parse(parser: argparse.ArgumentParser, *, new_tokens: int) -> argparse.Namespace:
    """The arguments of a script that compares the server with transformers, which is quiet from now on."""
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m-instruct"))
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is reported; one more warms up")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()
    args.serve_flags = [flag for flag in args.serve_flags if flag != "--"]
    # transformers warns of every setting that its own defaults and the model's file have in common.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return args


def main() -> None:
    parser = argparse.ArgumentParser(description="The server's output tokens/s beside those of model.generate.")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    args = parse(parser, new_tokens=64)
    results = measure(args)
    rows = [
        [
            str(result["streams"]),
            f"{result['served_tokens_per_s']:.1f}",
            f"{result['generate_tokens_per_s']:.1f}",
            f"{result['ratio']:.2f}",
            f"{result['idle_server_cpu']:.1%}",
        ]
        for result in results
    ]
    print(table(["streams", "server tok/s", "generate tok/s", "ratio", "idle server CPU"], rows))
    print(f"saved to {save('throughput', {'arguments': vars(args), 'results': results})}")


if __name__ == "__main__":
    main()
