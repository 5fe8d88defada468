"""What `transformers` does with the same prompts in one static batch, in process."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

import torch
import transformers


def quiet() -> None:
    """transformers warns of every setting that its own defaults and the model's file have in common."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class StaticBatch:
    """A causal model and its tokenizer, as anybody would load them."""

    def __init__(self, model: str, dtype: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate_s(self, texts: list[str], new_tokens: int, **options: Any) -> float:
        """Seconds of one `generate` over all of the texts, which are equally long."""
        inputs = self.tokenizer(texts, return_tensors="pt")
        limits = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        start = perf_counter()
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False, **limits, **options)
        elapsed_s = perf_counter() - start
        assert output.shape[1] == inputs["input_ids"].shape[1] + new_tokens
        return elapsed_s
