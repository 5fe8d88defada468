"""What one client sees of the server while others attack it, and what the attack leaves behind.

    .venv/bin/python loadtest/hostile.py
    .venv/bin/python loadtest/hostile.py --model models/mine --seconds 60 -- --max-running 32

A client asks for one token of a chat, several times a second, first alone and then while clients of another address
hold streams that they never read, idle connections, cancelled requests, slow grammars and texts that are too long.
Exits 1 if a promise is broken: the 99th percentile at most doubles, the front's memory grows by at most 50 MiB, and no
block of the KV cache is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
import urllib.request
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlsplit

import psutil
from arguments import DEFAULT_MODEL
from client import Timeline, run, send
from hostile_clients import Scale, attack
from report import percentile, save
from served import Served, server

MAX_SLOWDOWN = 2.0
MAX_GROWTH_MIB = 50
SETTLE_S = 90.0
ATTACKERS_NICE = 10
"""They would have machines of their own."""
FULL = Scale(seconds=120.0)
QUICK = Scale(seconds=1.0, never_reading=16, idle=100, cancels=100, grammars=4, long_texts=2)


def main() -> int:
    args = _arguments()
    scale = QUICK if args.quick else _scaled(args.seconds)
    with server(["--model", f"chat={args.model}", *args.serve_flags]) as served:
        result = _measure(served, scale, args)
    broken = _broken(result, judges_time=not args.quick)
    print(json.dumps({**result, "broken": broken}, indent=2))
    print(f"saved to {save('hostile', {'results': [{**result, 'broken': broken}]})}")
    return 1 if broken else 0


def _scaled(seconds: float) -> Scale:
    """The full attack for longer or shorter: as many cancelled requests a second."""
    return replace(FULL, seconds=seconds, cancels=round(FULL.cancels * seconds / FULL.seconds))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="of calm, and of attack (%(default)g)")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second of the client (%(default)g)")
    parser.add_argument("--new-tokens", type=int, default=400, help="of each attacker's stream (%(default)d)")
    parser.add_argument("--quick", action="store_true", help="a few seconds of a small attack; times are not judged")
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()
    args.serve_flags = [flag for flag in args.serve_flags if flag != "--"]
    return args


def _measure(served: Served, scale: Scale, args: argparse.Namespace) -> dict[str, Any]:
    run(_chats(served.url, args.rate, min(10.0, scale.seconds)))
    # A first small attack has every pool and every sandbox process started.
    _attacked(served, replace(QUICK, seconds=min(4.0, scale.seconds)), args)
    _settle(served)
    before_mib = _front_mib(served)
    calm = run(_chats(served.url, args.rate, scale.seconds))
    chats, done = _attacked(served, scale, args)
    _settle(served)
    run(_chats(served.url, args.rate, 1.0))
    return {
        "scale": asdict(scale),
        "done": done,
        "calm": _summary(calm),
        "attacked": _summary(chats),
        "front_mib": [round(before_mib, 1), round(_front_mib(served), 1)],
        "blocks_used": _metric(served, "sluice_kv_blocks_used"),
        "requests_left": _metric(served, "sluice_admitted_requests"),
    }


def _broken(result: dict[str, Any], *, judges_time: bool) -> list[str]:
    """The promises that were not kept."""
    calm, attacked = result["calm"], result["attacked"]
    before_mib, after_mib = result["front_mib"]
    checks = {
        "a request of the client failed": not calm["errors"] and not attacked["errors"],
        "the client's 99th percentile more than doubled": not judges_time
        or attacked["p99_s"] <= MAX_SLOWDOWN * calm["p99_s"],
        f"the front's memory grew by more than {MAX_GROWTH_MIB} MiB": after_mib - before_mib <= MAX_GROWTH_MIB,
        "a block was lost": result["blocks_used"] == 0 and result["requests_left"] == 0,
    }
    return [promise for promise, is_kept in checks.items() if not is_kept]


def _attacked(served: Served, scale: Scale, args: argparse.Namespace) -> tuple[list[Timeline], dict[str, int]]:
    """What the client sees meanwhile, and what the attackers did."""
    port = urlsplit(served.url).port
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    attackers = context.Process(target=_attack, args=(sender, port, scale, args.new_tokens), daemon=True)
    attackers.start()
    receiver.recv()
    chats = run(_chats(served.url, args.rate, scale.seconds))
    done: dict[str, int] = receiver.recv()
    attackers.join()
    return chats, done


def _attack(sender: Any, port: int, scale: Scale, new_tokens: int) -> None:
    os.nice(ATTACKERS_NICE)
    sender.send("begins")
    sender.send(dict(asyncio.run(attack(port, scale, new_tokens))))


async def _chats(url: str, rate: float, seconds: float) -> list[Timeline]:
    """Requests at fixed times, whether those before them are answered or not."""
    body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number in range(max(1, round(rate * seconds))):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(send(f"{url}/v1/chat/completions", body, start=due)))
    return [task.result() for task in tasks]


def _summary(chats: list[Timeline]) -> dict[str, Any]:
    seconds = [chat.end - chat.start for chat in chats]
    return {
        "requests": len(chats),
        "p50_s": percentile(seconds, 50),
        "p99_s": percentile(seconds, 99),
        "max_s": max(seconds),
        "errors": sorted({chat.error for chat in chats if chat.error}),
    }


def _settle(served: Served) -> None:
    """Until the server has nothing left to do."""
    deadline = time.monotonic() + SETTLE_S
    while _metric(served, "sluice_admitted_requests") and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)


def _metric(served: Served, name: str) -> float:
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def _front_mib(served: Served) -> float:
    return float(psutil.Process(served.process.pid).memory_info().rss) / 2**20


if __name__ == "__main__":
    sys.exit(main())
