"""The layers of BERT and its kin as our own operations: merged products, our attention, norms that add.

The stream of every token's vector stays in float32; products and attention run in the dtype of their weights.

Dimension key
    T  tokens of all texts
    H  hidden size
    X  values of a token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from server.encoder.attention import current_texts
from server.modules.layout import Layer, Packed, Product
from server.modules.operations import operations, run
from server.modules.recognise_encoder import recognise_layers
from server.modules.text_attention import attending
from server.modules.unsupported import Unsupported

MakeProduct = Callable[[Product], Packed]


def recognise(core: nn.Module) -> list[Layer[Product]] | None:
    """The layers of ``core``; None where it is more or other than a list of layers that are known."""
    try:
        return recognise_layers(core)
    except Unsupported:
        return None


class FusedLayers(nn.Module):
    """Takes the place of the module that holds the layers; texts lie end to end.

    ``reads_first_only``: whatever comes after reads each text's first token alone. The last layer makes the tokens that
    the step's `Texts` want.
    """

    def __init__(self, layers: Sequence[Layer[Packed]], *, reads_first_only: bool) -> None:
        super().__init__()
        self.dtype = layers[0].sublayers[0].first.dtype
        self.reads_first_only = reads_first_only
        self._layers = [operations(layer, index, is_wide=True) for index, layer in enumerate(layers)]
        self._products, self._norms = _held(layers)

    def forward(self, hidden_states: Tensor, *_args: Any, **_options: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        texts = current_texts()
        stream_TH = hidden_states[0].float().clone()
        x_TH = stream_TH.to(self.dtype)
        last = len(self._layers) - texts.has_first_only
        for layer in self._layers[:last]:
            stream_TH, x_TH = run(layer, stream_TH, attending(texts), read_TX=x_TH)
        for layer in self._layers[last:]:
            attend_wanted = attending(texts, only_wanted=True)
            stream_TH, _ = run(layer, stream_TH, attend_wanted, read_TX=x_TH, wanted_R=texts.wanted_places)
        # One token a text is a padded batch of the length 1.
        hidden = stream_TH[:, None] if texts.is_first_only else stream_TH[None]
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden.to(hidden_states.dtype))


def _held(layers: Sequence[Layer[Packed]]) -> tuple[nn.ModuleList, nn.ParameterList]:
    """Products and norms as parts of a module, by which its bytes are counted."""
    sublayers = [sublayer for layer in layers for sublayer in layer.sublayers]
    products = [product for sublayer in sublayers for _, product in sublayer.products]
    norms = [norm for sublayer in sublayers for norm in (sublayer.norm, sublayer.post_norm) if norm is not None]
    weights = [weight for norm in norms for weight in (norm.weight_D, norm.bias_D) if weight is not None]
    return (
        nn.ModuleList(product for product in products if isinstance(product, nn.Module)),
        nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights),
    )
