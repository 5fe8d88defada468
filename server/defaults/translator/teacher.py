"""The translator as it was trained: its decoder's layers begin with a recurrent cell (SSRU) instead of attention.

Dimension key
    B  sentences    S  source tokens    T  target tokens    D  features    V  vocabulary
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from server.defaults.translator.bergamot import Tensors

WIDTH = 256
HEADS = 8
ENCODER_LAYERS = 6
DECODER_LAYERS = 2
EPSILON = 1e-9
END = 0


def positions(length: int) -> Tensor:
    """Marian's table of sines and cosines, ``[length, D]``. Its frequencies differ a little from transformers' own."""
    half = WIDTH // 2
    frequencies = np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * frequencies[None]
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention, from ``[B, heads, length, D / heads]`` to ``[B, length, D]``. ``mask`` is True for what is seen.

    Written out: torch's own fused operation takes several times as long to differentiate on a CPU.
    """
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    shares = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (shares.to(value.dtype) @ value).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class DecoderStates:
    """What one decoder layer had and made, for every target token: ``[B, T, D]`` each."""

    inputs: Tensor
    cell: Tensor
    """After the recurrent cell and its norm: what attention has to give instead."""
    outputs: Tensor


class Teacher:
    """Forward passes of the original model in float32."""

    def __init__(self, tensors: Tensors, max_length: int = 512) -> None:
        self.weights = {name: torch.from_numpy(values) for name, values in tensors.items()}
        self.embedding_VD = self.weights["Wemb"]
        self.positions = positions(max_length)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weights = self.weights
        return functional.layer_norm(x, (WIDTH,), weights[name + "_scale"][0], weights[name + "_bias"][0], EPSILON)

    def _linear(self, x: Tensor, matrix: str, bias: str) -> Tensor:
        return torch.matmul(x, self.weights[matrix]) + self.weights[bias][0]

    def _heads(self, x: Tensor, name: str, part: str) -> Tensor:
        projected = self._linear(x, f"{name}_W{part}", f"{name}_b{part}")
        return projected.view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)

    def _attend(self, x: Tensor, keys: Tensor, values: Tensor, name: str, mask: Tensor) -> Tensor:
        """Attention with its residual and norm. ``mask`` is ``[B, 1, 1, S]``, True for what is seen."""
        mixed = mix(self._heads(x, name, "q"), keys, values, mask)
        return self._norm(x + self._linear(mixed, name + "_Wo", name + "_bo"), name + "_Wo_ln")

    def _feed(self, x: Tensor, name: str) -> Tensor:
        inner = functional.relu(self._linear(x, name + "_W1", name + "_b1"))
        return self._norm(x + self._linear(inner, name + "_W2", name + "_b2"), name + "_ffn_ln")

    def encode(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The encoder's output, ``[B, S, D]``."""
        x = self.embed(ids_BS) + self.positions[: ids_BS.shape[1]]
        mask = mask_BS[:, None, None, :].bool()
        for layer in range(1, ENCODER_LAYERS + 1):
            name = f"encoder_l{layer}_self"
            x = self._attend(x, self._heads(x, name, "k"), self._heads(x, name, "v"), name, mask)
            x = self._feed(x, f"encoder_l{layer}_ffn")
        return x

    def embed(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.embedding_VD) * math.sqrt(WIDTH)

    def logits(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.embedding_VD, self.weights["decoder_ff_logit_out_b"][0])

    def output_rows(self, tokens_C: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases of some tokens' logits."""
        return self.embedding_VD[tokens_C], self.weights["decoder_ff_logit_out_b"][0][tokens_C]

    def source(self, encoded_BSD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the source for each decoder layer, ``[B, heads, S, D / heads]``."""
        names = [f"decoder_l{layer}_context" for layer in range(1, DECODER_LAYERS + 1)]
        return [(self._heads(encoded_BSD, name, "k"), self._heads(encoded_BSD, name, "v")) for name in names]

    def after_cell(self, layer: int, x: Tensor, source: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """The rest of a decoder layer: attention to the source and the feed-forward part."""
        x = self._attend(x, *source, f"decoder_l{layer}_context", mask)
        return self._feed(x, f"decoder_l{layer}_ffn")

    def _gates(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a cell keeps of its state, and what it adds to it."""
        name = f"decoder_l{layer}_rnn"
        keep = torch.sigmoid(self._linear(x, name + "_Wf", name + "_bf"))
        return keep, (1 - keep) * (x @ self.weights[name + "_W"])

    def _cell_output(self, layer: int, x: Tensor, state: Tensor) -> Tensor:
        return self._norm(x + functional.relu(state), f"decoder_l{layer}_rnn_ffn_ln")

    def target_inputs(self, target_BT: Tensor) -> Tensor:
        """Embeddings of the tokens before each target token; before the first one it is zero."""
        embedded = self.embed(target_BT[:, :-1])
        return functional.pad(embedded, (0, 0, 1, 0)) + self.positions[: target_BT.shape[1]]

    def forced(
        self, target_BT: Tensor, encoded_BSD: Tensor, mask_BS: Tensor, nudges: list[Tensor] | None = None
    ) -> list[DecoderStates]:
        """The states of each decoder layer when the target is given; ``nudges`` are added to the cells' outputs."""
        mask = mask_BS[:, None, None, :].bool()
        x = self.target_inputs(target_BT)
        states = []
        for layer, source in enumerate(self.source(encoded_BSD), start=1):
            keep, add = self._gates(layer, x)
            state = torch.zeros_like(x[:, 0])
            cells = []
            for step in range(x.shape[1]):
                state = keep[:, step] * state + add[:, step]
                cells.append(state)
            cell = self._cell_output(layer, x, torch.stack(cells, dim=1))
            if nudges is not None:
                cell = cell + nudges[layer - 1]
            outputs = self.after_cell(layer, cell, source, mask)
            states.append(DecoderStates(x, cell, outputs))
            x = outputs
        return states

    @torch.inference_mode()
    def translate(self, ids_BS: Tensor, mask_BS: Tensor, max_ratio: float = 1.7) -> list[list[int] | None]:
        """Greedy translations with their end tokens; None for one longer than ``max_ratio`` times the source."""
        source = self.source(self.encode(ids_BS, mask_BS))
        mask = mask_BS[:, None, None, :].bool()
        rows = torch.arange(len(ids_BS))
        states = [torch.zeros(len(ids_BS), WIDTH) for _ in source]
        x = torch.zeros(len(ids_BS), WIDTH)
        found: list[list[int]] = [[] for _ in rows]
        ended: list[list[int] | None] = [None for _ in rows]
        for step in range(int(max_ratio * ids_BS.shape[1]) + 5):
            x = x + self.positions[step]
            for layer in range(1, DECODER_LAYERS + 1):
                keep, add = self._gates(layer, x)
                states[layer - 1] = keep * states[layer - 1] + add
                cell = self._cell_output(layer, x, states[layer - 1])
                x = self.after_cell(layer, cell[:, None], source[layer - 1], mask)[:, 0]
            best = self.logits(x).argmax(-1)
            for row, token in zip(rows.tolist(), best.tolist(), strict=True):
                found[row].append(token)
                if token == END:
                    ended[row] = found[row]
            running = best != END
            if not bool(running.any()):
                break
            if not bool(running.all()):
                rows, best, mask = rows[running], best[running], mask[running]
                states = [state[running] for state in states]
                source = [(keys[running], values[running]) for keys, values in source]
            x = self.embed(best)
        return ended
