"""`python -m server.models.tokenizer_probe FILE`: reads a tokenizer, and a few texts with it, under limits.

Exits with 1 or dies where that takes too much. Light: nothing of the server is imported.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

CPU_S = 5
MEMORY_BYTES = 2 * 1024**3
BYTES_PER_BYTE = 64
"""Of memory besides, for each byte of the file."""
MOST_TOKENS_PER_CHARACTER = 64
PROBES = ("a", "1", " ", "!", "aB", "a1 ", "\n ", "\u4e2d", "\u00e9", "\U0001f600")


def main() -> None:
    path = Path(sys.argv[1])
    size = path.stat().st_size
    _limit(resource.RLIMIT_AS, MEMORY_BYTES + BYTES_PER_BYTE * size)
    _limit(resource.RLIMIT_CPU, CPU_S + size // 2**20)
    _limit(resource.RLIMIT_CORE, 0)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:
        # A file that is broken in another way is refused by what reads it next, which says how.
        return
    for probe in PROBES:
        for text in (probe, probe * 50 + "?!", probe * 1000):
            if len(tokenizer.encode(text).ids) > MOST_TOKENS_PER_CHARACTER * (len(text) + 8):
                sys.exit(1)


def _limit(kind: int, most: int) -> None:
    """Lower the limit where the system has it; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
