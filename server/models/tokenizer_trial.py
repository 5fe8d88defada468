"""The patterns of a tokenizer.json are programs: one can take years for a line, or make gigabytes of a letter.

Neither can be stopped inside of the process that reads it, so a child tries them first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.models import tokenizer_probe
from server.models.describe import refuse

FILE = "tokenizer.json"
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
PATIENCE_S = 120.0
"""For a machine that is busy with other things."""


def try_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer whose patterns take too much for short texts. One without patterns is not tried."""
    path = folder / FILE
    if not path.is_file() or not _has_patterns(path):
        return
    command = [sys.executable, "-m", tokenizer_probe.__name__, str(path.resolve())]
    one_thread = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        exit_code = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE_S,
            env={**os.environ, **one_thread},
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        exit_code = 1
    if exit_code:
        limits = f"{tokenizer_probe.CPU_S} s or {tokenizer_probe.MEMORY_BYTES >> 30} GiB"
        raise refuse(
            f"The tokenizer in {folder} takes more than {limits} for texts of a few words. "
            f"Correct the patterns in {FILE}, or fetch it again."
        )


def _has_patterns(path: Path) -> bool:
    """Whether the file brings patterns of its own. A file that cannot be read has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return any(_is_pattern(content.get(stage)) for stage in STAGES)
    except (OSError, ValueError, AttributeError, RecursionError):
        # What reads it next says what is wrong.
        return False


def _is_pattern(stage: Any) -> bool:
    if isinstance(stage, list):
        return any(map(_is_pattern, stage))
    if not isinstance(stage, dict):
        return False
    return "pattern" in stage or any(map(_is_pattern, stage.values()))
