"""What a server holds while it rests: memory, descriptors, threads, tasks, blocks and requests."""

from __future__ import annotations

import re
from dataclasses import dataclass

from served import Served

MIB = 1024 * 1024


@dataclass(frozen=True)
class Held:
    """At one moment."""

    front_mib: float
    """Resident memory of the process that speaks HTTP, and of its sandbox."""
    workers_mib: float
    descriptors: float
    """Of the front's process, as the next three."""
    threads: float
    tasks: float
    blocks: float
    """Of the KV cache, held by sequences."""
    requests: float
    """Admitted and unfinished."""


def cache_mib(served: Served) -> float:
    """Of the KV caches in all. Their memory is taken as blocks are first used, in each worker's life anew."""
    return _sum(served.get("/metrics"), "sluice_kv_cache_bytes") / MIB


def held_by(served: Served) -> Held:
    memory, metrics = served.memory_bytes(), served.get("/metrics")
    return Held(
        front_mib=round(memory["front_bytes"] / MIB, 1),
        workers_mib=round(memory["worker_bytes"] / MIB, 1),
        descriptors=served.process.num_fds(),
        threads=served.process.num_threads(),
        tasks=_sum(metrics, "sluice_front_tasks"),
        blocks=_sum(metrics, "sluice_kv_blocks_used"),
        requests=_sum(metrics, "sluice_admitted_requests"),
    )


def _sum(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))
