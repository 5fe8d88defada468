"""transformers' own module over our paged cache: any decoder that calls the attention interface with plain masks.

The batch goes in as one flat row without padding; which token belongs to which sequence is known to the attention
function alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from server.engine.attention.backend import AttentionBackend
from server.engine.batch_inputs import BatchInputs
from server.engine.executors.lengthwise import Lengthwise, Span, spans_step
from server.engine.executors.paged import PagedRunner
from server.engine.executors.virtual import model_input
from server.modules.adapted import numbered, whole_parts
from server.modules.attention import LayerSpec
from server.modules.attention_calls import answering, configs
from server.modules.unsupported import Unsupported
from server.native.linear import held_bytes

PLAIN_LAYERS = {"full_attention", "sliding_attention"}


def probe(module: PreTrainedModel) -> list[LayerSpec]:
    """What each attention call looks like, in order. Raises `Unsupported` where one cannot be answered."""
    for config in configs(module):
        _check_config(config)
    if "position_ids" not in inspect.signature(module.forward).parameters:
        raise Unsupported("its forward takes no position_ids")
    specs: list[LayerSpec] = []

    def record(
        _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        if mask is not None:
            raise Unsupported("it builds attention masks of its own")
        for name in ("position_bias", "indices", "block_indices", "cache"):
            if options.get(name) is not None:
                raise Unsupported(f"its attention uses {name}")
        scaling = options.get("scaling")
        specs.append(
            LayerSpec(
                num_heads=query.shape[1],
                num_kv_heads=key.shape[1],
                key_dim=key.shape[3],
                value_dim=value.shape[3],
                scaling=query.shape[3] ** -0.5 if scaling is None else float(scaling),
                window=options.get("sliding_window"),
                softcap=options.get("softcap"),
                has_sinks=options.get("s_aux") is not None,
            )
        )
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    ids = torch.arange(3, device=module.device)[None]
    with torch.inference_mode(), answering(record):
        module(input_ids=ids, position_ids=ids, use_cache=False)
    if not specs:
        raise Unsupported("it does not call the attention interface")
    return specs


def _check_config(config: PreTrainedConfig) -> None:
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types <= PLAIN_LAYERS:
        raise Unsupported(f"it has layers of type {', '.join(sorted(layer_types - PLAIN_LAYERS))}")
    if getattr(config, "attn_temperature_tuning", False):
        # Llama 4's kind counts the tokens of a call.
        raise Unsupported("it scales its queries by positions that it counts itself")


class GenericRunner(PagedRunner):
    """Runs ``module`` with ``backend`` answering its attention calls."""

    name = "generic"

    def __init__(
        self,
        module: PreTrainedModel,
        specs: Sequence[LayerSpec],
        backend: AttentionBackend,
        *,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        lengthwise: Lengthwise | None = None,
    ) -> None:
        """``lengthwise`` is what the module's rotary parts ask, where they follow from sequences' lengths."""
        super().__init__(
            backend,
            module.device,
            module.dtype,
            num_blocks=num_blocks,
            block_size=block_size,
            vocab_size=vocab_size,
        )
        self._module = module
        self._lengthwise = lengthwise
        self.length_rule = None if lengthwise is None else lengthwise.rule
        self.weight_bytes = held_bytes(module)
        self.parts = numbered(whole_parts(module))
        self._sinks = [spec.has_sinks for spec in specs]
        self._selects_rows = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._layer = 0

    def compute(self, inputs: BatchInputs) -> Tensor:
        self._layer = 0
        num_wanted = len(inputs.wanted_R)
        # Not every module takes an empty index: where no logits are wanted, one row is computed and left out.
        wanted_R = inputs.wanted_R if num_wanted else torch.zeros(1, dtype=torch.int64, device=self.device)
        keep = {"logits_to_keep": wanted_R} if self._selects_rows else {}
        with answering(self._attend), spans_step(self._lengthwise, lambda: _spans(inputs)):
            output = self._module(
                **model_input(self._module, inputs.token_ids_T, inputs.given),
                position_ids=inputs.position_ids_T[None],
                use_cache=False,
                **keep,
            )
        assert self._layer == len(self._sinks), "the model's attention calls are not those of the probe"
        logits: Tensor = output.logits[0]
        return (logits[:num_wanted] if self._selects_rows else logits[inputs.wanted_R]).float()

    def _attend(
        self,
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        layer = self._layer
        self._layer += 1
        return self.backend.attend(layer, query, key, value, options.get("s_aux") if self._sinks[layer] else None)


def _spans(inputs: BatchInputs) -> list[Span]:
    return [
        Span(row.num_computed + row.position_offset, len(row.token_ids), row.deciding_length) for row in inputs.rows
    ]
