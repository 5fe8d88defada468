"""Where the time of a step goes: kernels by time, launches of a step, and how busy the device is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.driving import Engine, engine_of, step_until
from gpu.setting import Setting

NUM_STEPS = 20
NUM_KERNELS = 12


def run(setting: Setting) -> None:
    device = setting.use_device()
    engine = engine_of(setting, device)
    num_steps = setting.pick(NUM_STEPS, 2)
    for num_rows in setting.pick((1, 32, 256), (2,)):
        step_until(engine, [{}] * num_rows, prompt_tokens=setting.pick(128, 16), new_tokens=200)
        profiled(setting, f"decode, {num_rows} rows", engine.step, num_steps)
        engine.drop_all()

    def prompt() -> None:
        one_prompt(engine, setting.pick(2048, 64))

    prompt()
    profiled(setting, "one prompt", prompt, 1)


def one_prompt(engine: Engine, length: int) -> None:
    engine.add(torch.randint(3, engine.runner.vocab_size, (length,)).tolist(), 1)
    while engine.num_running:
        engine.step()


def profiled(setting: Setting, name: str, work: Callable[[], Any], num_steps: int) -> None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.is_cuda else [])]
    setting.synchronize()
    with profile(activities=activities) as profiler:
        start_s = time.perf_counter()
        for _ in range(num_steps):
            work()
        setting.synchronize()
        seconds = time.perf_counter() - start_s
    kind = "cuda" if setting.is_cuda else "cpu"
    events = [event for event in profiler.key_averages() if _time_us(event, kind) > 0]
    if setting.is_cuda:
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy_us = sum(_time_us(event, kind) for event in events)
    top = sorted(events, key=lambda event: _time_us(event, kind), reverse=True)[:NUM_KERNELS]
    setting.results.add(
        name,
        ms_per_step=seconds / num_steps * 1000,
        launches_per_step=sum(event.count for event in events) / num_steps,
        busy_share=busy_us / 1e6 / seconds,
        kernels={event.key[:80]: round(_time_us(event, kind) / num_steps, 1) for event in top},
    )


def _time_us(event: Any, kind: str) -> float:
    return float(event.self_device_time_total if kind == "cuda" else event.self_cpu_time_total)
