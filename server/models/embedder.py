"""A base model that makes one vector of each text, and what sentence-transformers' files say of how it does.

Dimension key
    B  texts in the step
    L  tokens of the longest
    H  hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from server.models.configs import positive
from server.models.describe import read_json, refuse
from server.protocol import Pooling

MODULES = "modules.json"
FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How vectors are made of texts. What files do not say is left as it comes: no length of 1, no prompt."""

    pooling: Pooling
    is_normalized: bool = False
    max_length: int | None = None
    """Most tokens of a text, special tokens included, where that is less than the model has positions."""
    prompts: dict[str, str] = field(default_factory=dict)
    """By name, what is put before a text."""
    default_prompt: str | None = None
    """Name of the prompt for requests that name none."""


def has_pooling(folder: Path) -> bool:
    """Whether sentence-transformers saved the folder as a model for embeddings, whatever head its weights have."""
    return (folder / MODULES).is_file() and "Pooling" in _modules(folder)


def default_pooling(model_type: str) -> Pooling:
    """Where no file says: of a decoder the last token, which alone has seen all others, else the mean of all.

    >>> default_pooling("llama"), default_pooling("bert")
    ('lasttoken', 'mean')
    """
    is_decoder = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "lasttoken" if is_decoder else "mean"


def read_recipe(folder: Path, model_type: str) -> Recipe:
    """Raises ConfigurationError for what would change the vectors and is not done here."""
    if not (folder / MODULES).is_file():
        return Recipe(pooling=default_pooling(model_type))
    modules = _modules(folder)
    for name in modules:
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise refuse(f"{folder / MODULES} has the module {name}, which is not served. Serve a model without it.")
    limits = _optional(folder, "sentence_bert_config.json")
    if limits.get("do_lower_case"):
        raise refuse(f"{folder} asks for do_lower_case outside of its tokenizer. Put it into the tokenizer.")
    prompts = _optional(folder, "config_sentence_transformers.json")
    return Recipe(
        pooling=_pooling(folder / modules["Pooling"]) if "Pooling" in modules else default_pooling(model_type),
        is_normalized="Normalize" in modules,
        max_length=positive(limits.get("max_seq_length")),
        prompts=prompts.get("prompts") or {},
        default_prompt=prompts.get("default_prompt_name"),
    )


def _modules(folder: Path) -> dict[str, str]:
    """Class name of each module -> where its own files are."""
    entries = read_json(folder, MODULES, list)
    try:
        return {str(entry["type"]).rpartition(".")[2]: str(entry["path"]) for entry in entries}
    except (KeyError, TypeError):
        raise refuse(f"{folder / MODULES} is not a list of modules. Write the folder again.") from None


def _optional(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder, name) if (folder / name).is_file() else {}
    return found


def _pooling(folder: Path) -> Pooling:
    config = read_json(folder, "config.json")
    wanted = config.get("pooling_mode") or [mode for flag, mode in FLAGS.items() if config.get(flag)]
    modes = [wanted] if isinstance(wanted, str) else wanted
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise refuse(
            f"{folder} pools by {' and '.join(map(str, modes)) or 'nothing'}. One of these is served: "
            f"{', '.join(get_args(Pooling))}."
        )
    if config.get("include_prompt") is False:
        raise refuse(f"{folder} leaves prompts out of its pooling, which is not served. Set include_prompt to true.")
    return cast("Pooling", modes[0])


class Embedder(nn.Module):
    """A base model with its pooling: like a classifier whose logits are the text's vector, not normalised."""

    base_model_prefix = "base"

    def __init__(self, base: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        base.config.use_cache = False
        self.base = base
        self.config = base.config
        self._pool = POOLINGS[pooling]

    @property
    def base_model(self) -> Any:
        return self.base

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.base.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.base.device
        return device

    def get_input_embeddings(self) -> Any:
        return self.base.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        optional = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        hidden_BLH = self.base(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        return SequenceClassifierOutput(logits=self._pool(hidden_BLH.float(), attention_mask.unsqueeze(-1)))


# The mask is [B, L, 1]; texts are padded behind their ends.


def _first(hidden_BLH: Tensor, _mask: Tensor) -> Tensor:
    return hidden_BLH[:, 0]


def _last(hidden_BLH: Tensor, mask: Tensor) -> Tensor:
    return hidden_BLH[torch.arange(len(hidden_BLH), device=hidden_BLH.device), mask.sum(1).squeeze(-1) - 1]


def _greatest(hidden_BLH: Tensor, mask: Tensor) -> Tensor:
    return hidden_BLH.masked_fill(mask == 0, -torch.inf).amax(1)


def _mean(hidden_BLH: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden_BLH, mask) / mask.sum(1)


def _mean_by_root(hidden_BLH: Tensor, mask: Tensor) -> Tensor:
    return _sum(hidden_BLH, mask) / mask.sum(1).sqrt()


def _weighted_mean(hidden_BLH: Tensor, mask: Tensor) -> Tensor:
    """Later tokens weigh more: the n-th of them n."""
    weights = mask * mask.cumsum(1)
    return _sum(hidden_BLH, weights) / weights.sum(1)


def _sum(hidden_BLH: Tensor, weights: Tensor) -> Tensor:
    # What stands behind a text's end may be anything, and 0 times infinity is not 0.
    return (hidden_BLH.masked_fill(weights == 0, 0.0) * weights).sum(1)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _greatest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
