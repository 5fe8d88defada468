"""What the machine has left. Knows files of the system, and no tensors."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes() -> int:
    """Memory that this process may still take: of the machine, and of its container."""
    free = _meminfo_available()
    cgroup = _cgroup_available()
    return free if cgroup is None else min(free, cgroup)


def _meminfo_available() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_available(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the tightest cgroup (v2, or v1's memory controller) still allows, None without a limit."""
    if not membership.exists():
        return None
    rooms: list[int] = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, limit, usage = (root, "memory.max", "memory.current") if controllers == "" else (
            root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")  # fmt: skip
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            rooms += _room(group, limit, usage)
            if group == base:
                break
    return min(rooms, default=None)


def _room(group: Path, limit_name: str, usage_name: str) -> list[int]:
    try:
        limit = (group / limit_name).read_text().strip()
        usage = int((group / usage_name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if limit == "max":
        return []
    # Cached file pages count as used, though the kernel gives them up first.
    return [max(0, int(limit) - usage + int(stat.get("inactive_file", 0)))]
