"""One line for a person, past a progress bar."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
