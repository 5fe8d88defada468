"""Virtual tokens as a runner takes them: in its dtype, on its device, of the shapes that its layers have."""

from __future__ import annotations

from torch import Tensor

from server.engine.model_runner import ModelRunner
from server.engine.preamble import KeysValues, Preamble
from server.modules.adapted import NotShared


def fitted_preamble(runner: ModelRunner, embeddings_ND: Tensor | None, keys_values_L2HNK: Tensor | None) -> Preamble:
    """Of embeddings, or of keys and values ``[L, 2, H, N, K]``. Raises `NotShared` where they do not fit."""
    if embeddings_ND is not None:
        return Preamble(
            num_tokens=len(embeddings_ND), embeddings_ND=embeddings_ND.to(runner.device, runner.dtype).contiguous()
        )
    assert keys_values_L2HNK is not None
    num_layers, _, num_heads, num_tokens, width = keys_values_L2HNK.shape
    theirs = [(num_heads, width, width)] * num_layers
    if runner.kv_shapes is not None and list(runner.kv_shapes) != theirs:
        raise NotShared(
            f"its keys and values are those of {num_layers} layers with {num_heads} heads of width {width}, and the "
            f"base has {len(runner.kv_shapes)} layers, the first with {_shown(runner.kv_shapes[0])}"
        )
    layers = keys_values_L2HNK.to(runner.device, runner.dtype)
    return Preamble(num_tokens=num_tokens, layers=[KeysValues(*layer.contiguous()) for layer in layers])


def _shown(shape: tuple[int, int, int]) -> str:
    num_heads, key_width, value_width = shape
    widths = f"{key_width}" if key_width == value_width else f"{key_width} and {value_width}"
    return f"{num_heads} heads of width {widths}"
