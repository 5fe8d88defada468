"""Virtual tokens of adapters in a step: as embeddings for transformers' modules, and as keys and values in a cache.

Dimension key
    T  tokens of a step or of a row
    N  virtual tokens
    D  width of the hidden states
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from server.engine.batch_inputs import Row


def model_input(module: PreTrainedModel, token_ids_T: Tensor, given: Sequence[tuple[slice, Tensor]]) -> dict[str, Any]:
    """The tokens of one row for ``module``; ``given`` are embeddings ``[N, D]`` in place of ids, by places in T."""
    if not given:
        return {"input_ids": token_ids_T[None]}
    embeddings_TD = module.get_input_embeddings()(token_ids_T)
    for places, rows_ND in given:
        embeddings_TD[places] = rows_ND
    return {"inputs_embeds": embeddings_TD[None]}


def num_given(row: Row) -> int:
    """Of the row's new tokens, how many have keys and values that its adapter brings."""
    preamble = row.context.preamble
    if preamble is None or not preamble.layers:
        return 0
    return min(len(row.token_ids), max(0, preamble.num_tokens - row.num_computed))


def behind_given(row: Row) -> Row:
    """The row without those tokens, as if they were computed."""
    number = num_given(row)
    left = len(row.token_ids) - number
    return msgspec.structs.replace(
        row,
        token_ids=row.token_ids[number:],
        num_computed=row.num_computed + number,
        num_logits=min(row.num_logits, left),
    )


def padded(logits_RV: Tensor, num_rows: int) -> Tensor:
    """``num_rows`` rows: zeros before the first, which virtual tokens have in place of logits."""
    return functional.pad(logits_RV, (0, 0, num_rows - len(logits_RV), 0))


def given_embeddings(row: Row, part: slice) -> list[tuple[slice, Tensor]]:
    """Of ``part`` of the row's new tokens: embeddings ``[N, D]`` that its adapter brings, and their places in it."""
    preamble = row.context.preamble
    start, stop = row.num_computed + part.start, row.num_computed + part.stop
    rows_ND = None if preamble is None else preamble.embeddings(start, stop)
    return [] if rows_ND is None else [(slice(0, len(rows_ND)), rows_ND)]
