"""transformers' generate on the same model, with static batches: the bar."""

from __future__ import annotations

import torch

from gpu import models
from gpu.setting import Setting

PROMPT_TOKENS = 64


def run(setting: Setting) -> None:
    device = setting.use_device()
    module = models.made(models.small(setting), device)
    module.set_attn_implementation("sdpa")
    num_new = setting.pick(128, 8)
    for num_rows in setting.pick((1, 32, 256), (1, 4)):
        ids = torch.randint(3, module.config.vocab_size, (num_rows, PROMPT_TOKENS), device=device)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "min_new_tokens": num_new}
        with torch.inference_mode():
            seconds = setting.seconds(lambda: module.generate(ids, max_new_tokens=num_new, **options), 1)  # noqa: B023
        setting.results.add(f"generate, {num_rows} rows", tokens_per_s=num_rows * num_new / seconds)
