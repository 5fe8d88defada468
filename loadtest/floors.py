"""What the machine can do at most: memory read in order, and matrix products by torch's own kernels.

Best of several runs, since a floor is what nothing disturbed; but the median where it is compared with medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import Any

import torch
import transformers
from plan import Plan
from rounds import Numbers
from torch import Tensor
from torch.nn import functional

READ_BYTES = 269 * 10**6
"""About the weights of the default model; far more than the caches hold."""
ROWS = (1, 8, 32, 256)
BUDGET_S = 0.1


def measure(plan: Plan) -> Numbers:
    """By number of threads: bytes a second, and operations a second of every product."""
    edge = plan.pick(2048, 128)
    shapes = model_shapes(plan.model)
    products = [(edge, edge, edge), *((rows, n, k) for n, k in shapes for rows in plan.pick(ROWS, ROWS[:2]))]
    results: Numbers = {"model_shapes_NK": shapes}
    for num_threads in sorted({1, torch.get_num_threads()}):
        with threads(num_threads):
            results[f"{num_threads} threads"] = {
                "read_bytes_per_s": read_bytes_per_s(plan.pick(READ_BYTES, 10**6)),
                "products": [product(*shape, plan.pick(BUDGET_S, 0.005)) for shape in products],
            }
    return results


def read_bytes_per_s(num_bytes: int = READ_BYTES, pick: Callable[[list[float]], float] = min) -> float:
    """Of all threads together, over memory that no cache holds; ``pick`` chooses of several times."""
    numbers = _buffer(num_bytes // 4)
    return numbers.numel() * 4 / pick(times_s(lambda: numbers.sum(dtype=torch.int32), 0.3))


@cache
def _buffer(length: int) -> Tensor:
    return torch.ones(length, dtype=torch.int32)


def product(num_rows: int, num_outputs: int, num_inputs: int, budget_s: float) -> Numbers:
    """Operations a second of ``x @ weight.T``; the weight is laid out as torch keeps it."""
    x, weight = torch.randn(num_rows, num_inputs), torch.randn(num_outputs, num_inputs)
    ops = 2 * num_rows * num_outputs * num_inputs
    numbers: Numbers = {"M": num_rows, "N": num_outputs, "K": num_inputs}
    numbers["fp32"] = ops / best_s(lambda: functional.linear(x, weight), budget_s)
    narrow_x, narrow = x.bfloat16(), weight.bfloat16()
    numbers["bf16"] = ops / best_s(lambda: functional.linear(narrow_x, narrow), budget_s)
    packed = torch.ops.mkldnn._reorder_linear_weight(narrow)
    numbers["bf16 packed"] = ops / best_s(
        lambda: torch.ops.mkldnn._linear_pointwise(narrow_x, packed, None, "none", [], ""), budget_s
    )
    bytes_x, bytes_w = (t.clamp(-3, 3).mul(40).to(torch.int8) for t in (x, weight))
    numbers["int8"] = ops / best_s(lambda: torch._int_mm(bytes_x, bytes_w.t()), budget_s)
    return numbers


def best_s(call: Callable[[], Any], budget_s: float) -> float:
    """Seconds of the quickest call within the budget."""
    return min(times_s(call, budget_s))


def times_s(call: Callable[[], Any], budget_s: float) -> list[float]:
    """Seconds of each call within the budget, at least one, after one that warms up."""
    call()
    times: list[float] = []
    begin = perf_counter()
    while perf_counter() < begin + budget_s or not times:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return times


def model_shapes(model: str) -> list[tuple[int, int]]:
    """Outputs and inputs of the model's products: those of a layer, joined where they read the same, and the head."""
    config = transformers.AutoConfig.from_pretrained(model).get_text_config()
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or width // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    gates = 1 if config.model_type == "gpt2" else 2
    shapes = [((heads + 2 * kv_heads) * head_dim, width), (width, heads * head_dim), (gates * inner, width)]
    return [*shapes, (width, inner), (config.vocab_size, width)]


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
