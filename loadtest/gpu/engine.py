"""The engine alone: many requests of mixed lengths, decoding at a fixed context, and prompts."""

from __future__ import annotations

import random
import time

import torch
from transformers import PreTrainedConfig

from gpu import models
from gpu.driving import MAX_RUNNING, Engine, engine_of
from gpu.setting import Setting

CONTEXT = 512
NUM_STEPS = 30
PART_OF_THE_TIME = 0.45
"""For the mixed requests, which are stopped when it is over."""


def run(setting: Setting) -> None:
    device = setting.use_device()
    start_s = setting.left_s
    for name, config in (("small", models.small), ("medium", models.medium), ("large", models.large)):
        if name != "small" and setting.is_tiny:
            break
        engine = loaded(setting, device, name, config(setting))
        decoding(setting, engine, name)
        prompts(setting, engine, name)
        if name != "large":
            mixed(setting, engine, name, PART_OF_THE_TIME * start_s / 2)
        del engine
        if setting.is_cuda:
            torch.cuda.empty_cache()


def loaded(setting: Setting, device: torch.device, name: str, config: PreTrainedConfig) -> Engine:
    began_s = time.monotonic()
    engine = engine_of(setting, device, config)
    runner = engine.runner
    setting.results.add(
        f"{name}: loaded", seconds=time.monotonic() - began_s, executor=runner.name, attention=runner.attention,
        weight_gb=runner.weight_bytes / 1e9, kv_cache_gb=runner.kv_cache_bytes / 1e9,
    )  # fmt: skip
    return engine


def decoding(setting: Setting, engine: Engine, name: str) -> None:
    context, num_steps = setting.pick(CONTEXT, 64), setting.pick(NUM_STEPS, 4)
    for num_rows in setting.pick((1, 32, MAX_RUNNING), (1, 4)):
        for prompt in torch.randint(3, engine.runner.vocab_size, (num_rows, context)).tolist():
            engine.add(prompt, 4 * num_steps)
        while engine.step() < num_rows:
            if setting.left_s < 3:
                return
        seconds = setting.seconds(engine.step, num_steps)
        setting.results.add(f"{name}: decode, {num_rows} rows", ms=seconds * 1000, tokens_per_s=num_rows / seconds)
        engine.drop_all()


def prompts(setting: Setting, engine: Engine, name: str) -> None:
    count, length = setting.pick((8, 2048), (2, 128))
    for repeat in range(2):
        start_s = time.perf_counter()
        for prompt in torch.randint(3, engine.runner.vocab_size, (count, length)).tolist():
            engine.add(prompt, 1)
        while engine.num_running:
            engine.step()
        setting.synchronize()
        if repeat:
            seconds = time.perf_counter() - start_s
            setting.results.add(f"{name}: prompts, {count} x {length}", tokens_per_s=count * length / seconds)


def mixed(setting: Setting, engine: Engine, name: str, limit_s: float) -> None:
    """256 requests of 100 to 1,024 tokens in and as many out, all at once."""
    draw = random.Random(0)
    low, high = setting.pick((100, 1024), (10, 40))
    for _ in range(setting.pick(256, 8)):
        prompt = [draw.randrange(3, engine.runner.vocab_size) for _ in range(draw.randint(low, high))]
        engine.add(prompt, draw.randint(low, high), do_sample=True, temperature=0.6, seed=1)
    start_s = time.perf_counter()
    count = 0
    while engine.num_running and time.perf_counter() - start_s < limit_s:
        count += engine.step()
    setting.synchronize()
    seconds = time.perf_counter() - start_s
    left = engine.num_running
    setting.results.add(f"{name}: mixed requests", tokens_per_s=count / seconds, seconds=seconds, unfinished=left)
    engine.drop_all()
