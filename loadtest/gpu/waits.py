"""Where a step waits for the device, by torch's own count: once, to copy its tokens, is what a step needs."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from typing import Any

import torch

from gpu.driving import engine_of, step_until
from gpu.setting import Setting

NUM_STEPS = 10
NUM_ROWS = 32
KINDS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "temperature": [{"do_sample": True}],
    "top_p": [{"do_sample": True, "top_p": 0.9}],
    "greedy and top_p": [{}, {"do_sample": True, "top_p": 0.9}],
    "five kinds": [{}, *({"do_sample": True, **rule} for rule in ({}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}))],
    "logprobs": [{"logprobs": True, "top_n_tokens": 5}],
    "repetition_penalty": [{"repetition_penalty": 1.1}],
    "beams": [{"num_beams": 4}],
}


def run(setting: Setting) -> None:
    device = setting.use_device()
    if device.type != "cuda":
        setting.results.add("waits", why="only CUDA counts them")
        return
    engine = engine_of(setting, device)
    for name, params in KINDS.items():
        step_until(engine, [params[i % len(params)] for i in range(NUM_ROWS)], prompt_tokens=64, new_tokens=40)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            places: Counter[str] = Counter()
            warnings.showwarning = lambda *_args, places=places, **_options: places.update([_place()])
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(NUM_STEPS):
                engine.step()
            torch.cuda.set_sync_debug_mode("default")
        setting.results.add(name, waits_per_step=sum(places.values()) / NUM_STEPS, places=dict(places.most_common(12)))
        engine.drop_all()


def _place() -> str:
    """The line of the product that is being run."""
    frames = [frame for frame in traceback.extract_stack() if "/server/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/server/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
