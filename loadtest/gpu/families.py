"""Every family through the runner that the product chooses, teacher-forced, against transformers in float32.

Dimension key: B rows, T tokens of the whole sequences, N new tokens, V vocabulary size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from gpu import models
from gpu.setting import Setting
from server.config import ModelConfig
from server.engine.batch_inputs import Row
from server.engine.executors import build_runner
from server.engine.executors.cuda_graphs import GraphRunner
from server.engine.model_runner import ModelRunner

PROMPT_LENGTHS = (7, 40, 120)
MAX_MODEL_LEN = 512
MOST_KL = 0.02
"""Mean, in nats: bfloat16 against float32 with the same weights."""
LEAST_SAME_TOP = 0.9


def run(setting: Setting) -> None:
    logging.basicConfig(level=logging.WARNING)
    device = setting.use_device()
    for name in setting.pick(tuple(models.FAMILIES), models.TINY):
        try:
            check_family(setting, device, name)
        except Exception as error:
            setting.results.add(name, ok=False, error=f"{type(error).__name__}: {error}")


def check_family(setting: Setting, device: torch.device, name: str) -> None:
    num_new = setting.pick(48, 6)
    served = models.family(setting, name).to(torch.bfloat16)
    oracle = copy.deepcopy(served).float().to(device)
    sequences = [sequence(oracle, length, num_new, device) for length in PROMPT_LENGTHS]
    expected = [oracle_logits(oracle, ids, num_new, device) for ids in sequences]
    del oracle
    runner = runner_of(copy.deepcopy(served).to(device), name)
    ours = forced(runner, sequences, num_new)
    kl, same_top = distance(ours, expected)
    values = {"executor": runner.name, "attention": runner.attention, "kl": kl, "same_top": same_top}
    if isinstance(runner, GraphRunner):
        plain = forced(runner_of(served.to(device), name, cuda_graphs=False), sequences, num_new)
        values["graphs_kl"], values["graphs_same_top"] = distance(ours, plain)
        values["num_graphs"] = runner.num_graphs
    setting.results.add(name, ok=kl <= MOST_KL and same_top >= LEAST_SAME_TOP, **values)


def runner_of(module: torch.nn.Module, name: str, **settings: bool) -> ModelRunner:
    config = ModelConfig(name=name, path="unused", kv_cache_gib=0.1, max_running=8, **settings)
    return build_runner(module, config, MAX_MODEL_LEN)


@torch.inference_mode()
def sequence(oracle: torch.nn.Module, length: int, num_new: int, device: torch.device) -> list[int]:
    """A random prompt and what the oracle makes of it greedily."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, models.VOCAB_SIZE, (1, length), generator=generator).to(device)
    options = {"do_sample": False, "max_new_tokens": num_new, "min_new_tokens": num_new}
    found: list[int] = oracle.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()  # type: ignore[operator]
    return found


@torch.inference_mode()
def oracle_logits(oracle: torch.nn.Module, ids: Sequence[int], num_new: int, device: torch.device) -> Tensor:
    """``[N, V]``: those that chose the new tokens, from one pass without a cache."""
    logits_TV: Tensor = oracle(torch.tensor([ids], device=device), use_cache=False).logits[0]
    return logits_TV[-num_new - 1 : -1].float().cpu()


@torch.inference_mode()
def forced(runner: ModelRunner, sequences: Sequence[Sequence[int]], num_new: int) -> list[Tensor]:
    """``[N, V]`` of each sequence: its prompt in one step beside the others, then its own tokens one by one."""
    width = -(-MAX_MODEL_LEN // runner.block_size)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for step in range(num_new):
        rows = []
        for i, ids in enumerate(sequences):
            stop = len(ids) - num_new + step
            start = stop - 1 if step else 0
            table = range(i * width, (i + 1) * width)
            rows.append(Row(key=i, token_ids=ids[start:stop], num_computed=start, block_table=table))
        for found, row in zip(logits, runner.forward(rows), strict=True):
            found.append(row.float().cpu())
    for i in range(len(sequences)):
        runner.release(i)
    return [torch.stack(found) for found in logits]


def distance(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """Mean KL in nats, and the share of places with the same most likely token."""
    ours_NV, expected_NV = torch.cat(list(ours)).log_softmax(-1), torch.cat(list(expected)).log_softmax(-1)
    kl = (expected_NV.exp() * (expected_NV - ours_NV)).sum(-1).mean()
    return float(kl), float((ours_NV.argmax(-1) == expected_NV.argmax(-1)).float().mean())
