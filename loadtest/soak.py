"""A long mixed load with clients that leave and workers that are killed; at its end nothing may be lost or have grown.

    python loadtest/soak.py --minutes 10 -- --config deploy/defaults.toml --threads 1
    python loadtest/soak.py --minutes 1440 -- --model chat=models/smollm2-135m-instruct

The load comes in spells. After each one the server rests until no request is left, and what it holds is written down:
memory, descriptors, threads, tasks, blocks. Exits with 1 if a request was lost, or if the last rest holds more than
the first allows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from time import perf_counter
from typing import Any

import psutil
from client import Timeline, run, send
from held import Held, cache_mib, held_by
from report import save, table
from served import Served, server
from soak_requests import Request, requests_for

WORKER_NAME = "sluice-worker"
REFUSALS = {429, 503}
"""The server may have too much to do, or be replacing a worker; its answer then says when to retry."""
REST_S = 60.0
LIMITS = Held(front_mib=50, workers_mib=150, descriptors=20, threads=8, tasks=5, blocks=0, requests=0)
"""How much more the last rest may hold than the first; workers may also take the memory of their caches."""


@dataclass
class Soak:
    """One run."""

    served: Served
    requests: Sequence[Request]
    clients: int
    cancel_share: float
    kill_every_s: float
    seed: int

    def __post_init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.losses: list[str] = []
        self.num_kills = 0

    async def spell(self, number: int, duration_s: float) -> None:
        """All clients at work, and a worker killed now and then."""
        end = perf_counter() + duration_s
        rngs = [random.Random(f"{self.seed} {number} {i}") for i in range(self.clients + 1)]
        killer = asyncio.create_task(self._kill(rngs[-1]))
        try:
            await asyncio.gather(*(self._client(rng, end) for rng in rngs[:-1]))
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)

    async def _client(self, rng: random.Random, end: float) -> None:
        while perf_counter() < end and self.served.is_alive:
            request = rng.choice(self.requests)
            leaves_after_s = rng.expovariate(5) if rng.random() < self.cancel_share else None
            await self._send(request, leaves_after_s)

    async def _send(self, request: Request, leaves_after_s: float | None) -> None:
        sending = send(self.served.url + request.path, request.body)
        try:
            async with asyncio.timeout(leaves_after_s):
                self._note(request, await sending)
        except TimeoutError:
            self.outcomes["left"] += 1

    def _note(self, request: Request, timeline: Timeline) -> None:
        if timeline.is_whole or request.status == timeline.status != 200:
            self.outcomes["answered"] += 1
        elif timeline.status in REFUSALS:
            self.outcomes["refused"] += 1
        else:
            self.outcomes["lost"] += 1
            self.losses.append(f"{request.path}: status {timeline.status}, {timeline.error}")

    async def _kill(self, rng: random.Random) -> None:
        while True:
            await asyncio.sleep(rng.uniform(0.5, 1.5) * self.kill_every_s)
            workers = [child for child in self.served.process.children(recursive=True) if _is_worker(child)]
            if workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    rng.choice(workers).send_signal(signal.SIGKILL)
                    self.num_kills += 1

    async def rest(self) -> Held:
        """What the server holds once nobody asks it anything and all its workers are back."""
        end = perf_counter() + REST_S
        while perf_counter() < end and not await self._is_at_rest():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        # Connections that clients left are closed, and the log is written.
        await asyncio.sleep(1)
        return await asyncio.to_thread(held_by, self.served)

    async def _is_at_rest(self) -> bool:
        ready = await send(self.served.url + "/readyz", None)
        return ready.status == 200 and (await asyncio.to_thread(held_by, self.served)).requests == 0


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.name() == WORKER_NAME
    except psutil.NoSuchProcess:
        return False


def growth(rests: Sequence[Held], limits: Held = LIMITS) -> list[str]:
    """What the last rest holds beyond what the first one and the limits allow, in words."""
    if not rests:
        return []
    first, last = rests[0], rests[-1]
    found = []
    for name in (field.name for field in fields(Held)):
        before, after, limit = (getattr(held, name) for held in (first, last, limits))
        if after > before + limit:
            found.append(f"{name}: {before:g} at the first rest, {after:g} at the last, at most {limit:g} more")
    return found


async def soak(run_: Soak, minutes: float, spells: int) -> list[Held]:
    """The rests; one more spell than told warms the server up and is not judged."""
    rests = []
    for number in range(spells + 1):
        await run_.spell(number, 60 * minutes / (spells + 1))
        if not run_.served.is_alive:
            break
        rests.append(await run_.rest())
        row = [f"{value:g}" for value in asdict(rests[-1]).values()]
        print(table(["rest", *asdict(rests[-1])], [[str(number), *row]]), flush=True)
    return rests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--spells", type=int, default=9, help="rests that are compared")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--cancel-share", type=float, default=0.2, help="of requests whose client leaves early")
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds between two kills of a worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("serve_flags", nargs=argparse.REMAINDER, help="after --: flags for sluice serve")
    args = parser.parse_args()
    with server([flag for flag in args.serve_flags if flag != "--"]) as served:
        requests = requests_for(json.loads(served.get("/info")))
        run_ = Soak(served, requests, args.clients, args.cancel_share, args.kill_every, args.seed)
        limits = replace(LIMITS, workers_mib=LIMITS.workers_mib + cache_mib(served))
        rests = run(soak(run_, args.minutes, args.spells))
        problems = [*run_.losses[:20], *growth(rests, limits)]
        if not served.is_alive:
            problems.append(f"the server ended; its last words: {served.last_words()}")
    result: dict[str, Any] = {"outcomes": run_.outcomes, "kills": run_.num_kills, "problems": problems}
    print(f"{dict(run_.outcomes)}, {run_.num_kills} kills")
    print("\n".join(problems) or "nothing was lost, and nothing grew")
    print(f"saved to {save('soak', {'results': [{**result, 'rests': [asdict(held) for held in rests]}]})}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
