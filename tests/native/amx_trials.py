"""`python -m tests.native.amx_trials products|attention|encoder|trial N`: both kinds of tiles in N random trials.

``trial`` is the one that a worker makes before it uses them.

Runs on a processor with AMX, or with the emulator preloaded.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from server.native import kernels
from server.worker import kernel_trial
from tests.encoder.random_texts import random_texts
from tests.engine import test_attention_trials
from tests.native import random_products


def product(trial: int) -> Tensor:
    return random_products.product(trial).run()


def attention(trial: int) -> Tensor:
    chance = random.Random(trial)
    place = test_attention_trials.scene(test_attention_trials.any_spec(chance), torch.bfloat16, "auto")
    sequence = place.sequence(chance.randrange(1, 150), trial)
    return torch.cat(test_attention_trials.together(place, [sequence], chance))


def encoder(trial: int) -> Tensor:
    return torch.cat(random_texts(trial, torch.bfloat16, 70).together())


def compare(run: Callable[[int], Tensor], num_trials: int) -> None:
    for trial in range(num_trials):
        outs = []
        for name in ("tiles", "amx"):
            kernels.use(name, 2)
            outs.append(run(trial))
        if not torch.equal(*outs):
            sys.exit(f"trial {trial} differs by {(outs[0] - outs[1]).abs().max()}")


def choose(num_trials: int) -> None:
    for _ in range(num_trials):
        kernels.use("amx", 2, kernel_trial.problem)


def main(what: str, num_trials: int) -> None:
    torch.set_num_threads(1)
    is_emulated = "LD_PRELOAD" in os.environ
    if is_emulated:
        capabilities = dict.fromkeys(kernels.VARIANTS["_amx"], True)
        torch.cpu.get_capabilities = lambda: capabilities  # type: ignore[assignment]
    if what == "trial":
        choose(num_trials)
    else:
        compare({"products": product, "attention": attention, "encoder": encoder}[what], num_trials)
    # Those of the worker's trial are its child's.
    if is_emulated and what != "trial" and ctypes.CDLL(None).emulated_products() == 0:
        sys.exit("no instruction was emulated")
    sys.stdout.write(f"{num_trials} equal\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
