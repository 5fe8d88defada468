"""Our Triton kernels on the device: against attention in float64, and how near they come to its bandwidth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gpu.setting import Setting
from server.engine.attention import cuda, cuda_trial
from server.engine.attention.cuda_triton import TritonAttention
from server.modules.attention import LayerSpec

PLAIN = LayerSpec(num_heads=8, num_kv_heads=2, key_dim=64, value_dim=64, scaling=0.125)


def wide(key_dim: int, value_dim: int, num_heads: int = 4, num_kv_heads: int = 2) -> LayerSpec:
    return dataclasses.replace(
        PLAIN, key_dim=key_dim, value_dim=value_dim, num_heads=num_heads, num_kv_heads=num_kv_heads
    )


SPECS = {
    "grouped": PLAIN,
    "one head each": dataclasses.replace(PLAIN, num_kv_heads=8),
    "nine heads of three": dataclasses.replace(PLAIN, num_heads=9, num_kv_heads=3),
    "128 wide": wide(128, 128, 8),
    "window": dataclasses.replace(PLAIN, window=33),
    "softcap": dataclasses.replace(PLAIN, softcap=20.0),
    "sinks": dataclasses.replace(PLAIN, has_sinks=True),
    "window, softcap, sinks": dataclasses.replace(PLAIN, window=33, softcap=20.0, has_sinks=True),
    "twelve in a group": wide(64, 64, 12, 1),
    "16 wide": wide(16, 16),
    "80 wide": wide(80, 80),
    "96 wide": wide(96, 96),
    "256 wide": wide(256, 256),
    "192 and 128 wide": wide(192, 128),
}
BLOCK_SIZE = 32
NUM_AT_ONCE = 14
"""Processes that compile at the same time."""
FOR_FLOAT32 = ("grouped", "128 wide")

SHAPES = {
    "135M": wide(64, 64, 9, 3),
    "0.5B": wide(64, 64, 14, 2),
    "8B": wide(128, 128, 32, 8),
}
CONTEXT = 512
MANY_BYTES = 400e6
"""Read in turn before anything is read again, so that the caches do not help."""


def check(setting: Setting, device: torch.device) -> None:
    if problem := TritonAttention.problem([PLAIN], BLOCK_SIZE, torch.bfloat16, device):
        setting.results.add("triton", why=problem)
        return
    right(setting, device)
    for name, spec in SHAPES.items():
        for num_rows in (1, 32, 256):
            decoding(setting, device, name, spec, num_rows)
        prompts(setting, device, name, spec)
        placing(setting, device, name, spec)


def right(setting: Setting, device: torch.device) -> None:
    """As at load: every kind of layer in a process of its own, which compiles it, then in this one."""
    cases = [(name, dtype) for name in SPECS for dtype in (torch.bfloat16, torch.float16)]
    cases += [(name, torch.float32) for name in FOR_FLOAT32]

    def elsewhere(case: tuple[str, torch.dtype]) -> tuple[str | None, float]:
        name, dtype = case
        start_s = time.monotonic()
        kinds = cuda.kinds_of([SPECS[name]])
        said = cuda_trial.problem("triton", kinds, BLOCK_SIZE, dtype, device, deterministic=False)
        return said, time.monotonic() - start_s

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        for (name, dtype), (problem, seconds) in zip(cases, pool.map(elsewhere, cases), strict=True):
            start_s = time.monotonic()
            problem = problem or cuda.trial_problem(
                TritonAttention, [SPECS[name]], BLOCK_SIZE, dtype, device, deterministic=False
            )
            setting.results.add(
                "triton", ok=problem is None, spec=name, dtype=str(dtype), problem=problem, elsewhere_s=seconds,
                here_s=time.monotonic() - start_s,
            )  # fmt: skip


def decoding(setting: Setting, device: torch.device, name: str, spec: LayerSpec, num_rows: int) -> None:
    num_bytes = num_rows * CONTEXT * spec.num_kv_heads * (spec.key_dim + spec.value_dim) * 2
    seconds = attending(device, spec, num_rows, 1, CONTEXT, num_bytes)
    setting.results.add(
        f"triton, {name}: decode, {num_rows} rows", us=seconds * 1e6, gb_per_s=num_bytes / seconds / 1e9
    )


def prompts(setting: Setting, device: torch.device, name: str, spec: LayerSpec) -> None:
    count, length = 8, 2048
    flop = 2 * count * spec.num_heads * (spec.key_dim + spec.value_dim) * length * (length + 1) / 2
    seconds = attending(device, spec, count, length, length, MANY_BYTES)
    setting.results.add(
        f"triton, {name}: prompts, {count} x {length}", us=seconds * 1e6, tflop_per_s=flop / seconds / 1e12
    )


def placing(setting: Setting, device: torch.device, name: str, spec: LayerSpec) -> None:
    from server.cuda.place import Places, Turn, place

    for num_tokens in (256, 16384):
        widths = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        qkv = torch.randn(num_tokens, sum(widths), spec.key_dim, device=device).bfloat16()
        query, key, value = qkv.split(widths, dim=1)
        keys, values = pages(device, spec, num_tokens // BLOCK_SIZE)
        factors = torch.rand(num_tokens, spec.key_dim // 2, device=device)
        numbers = torch.arange(num_tokens, device=device)
        places = Places(slots_T=numbers, rows_T=numbers.int(), failed_B=torch.zeros_like(numbers, dtype=torch.int32))
        turn = Turn(positions_T=numbers, cos_MR=factors, sin_MR=factors)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)

        def work(
            query: Tensor = query, key: Tensor = key, value: Tensor = value, keys: Tensor = keys,
            values: Tensor = values, places: Places = places, turn: Turn = turn, out: Tensor = out,
        ) -> None:  # fmt: skip
            place(key, value, keys, values, places, query_THD=query, out_THD=out, turn=turn)

        seconds = replayed([work] * 10)
        num_bytes = 2 * qkv.numel() * 2
        setting.results.add(
            f"triton, {name}: place, {num_tokens} tokens", us=seconds * 1e6, gb_per_s=num_bytes / seconds / 1e9
        )


def pages(device: torch.device, spec: LayerSpec, num_pages: int) -> Tensor:
    """Keys and values."""
    return torch.randn(2, num_pages, BLOCK_SIZE, spec.num_kv_heads, spec.width, device=device).bfloat16()


def attending(
    device: torch.device, spec: LayerSpec, num_rows: int, num_new: int, length: int, num_bytes: float
) -> float:
    """Seconds of one call over cold pages."""
    from server.cuda.attention import Rule, Step, attend

    num_pages = -(-length // BLOCK_SIZE)
    numbers = torch.arange(num_rows, dtype=torch.int32, device=device)
    tables = torch.randperm(num_rows * num_pages, device=device).int().view(num_rows, num_pages)
    step = Step(
        tables_BW=tables,
        starts_B1=torch.arange(num_rows + 1, dtype=torch.int32, device=device) * num_new,
        lengths_B=torch.full_like(numbers, length),
        order_B=numbers,
        failed_B=torch.zeros_like(numbers),
        num_chunks=num_rows if num_new > 1 else 0,
        most_new=num_new,
        most_tokens=length,
    )
    query = torch.randn(num_rows * num_new, spec.num_heads, spec.key_dim, device=device).bfloat16()
    out = torch.empty_like(query)
    pools = [pages(device, spec, num_rows * num_pages) for _ in range(max(4, min(600, int(MANY_BYTES / num_bytes))))]
    rule = Rule(scale=spec.scaling)

    def call(pool: Tensor) -> Callable[[], None]:
        return lambda: attend(query, pool[0], pool[1], step, rule, out)

    return replayed([call(pool) for pool in pools])


def replayed(calls: list[Callable[[], None]], repeats: int = 5) -> float:
    """Seconds of a call, started by a CUDA graph of all of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000 / repeats / len(calls)
