"""One step through an encoder's module, with padding: token ids in, logits out. `flat` has the way without.

Dimension key
    B  requests in the step
    L  tokens of the longest, or labels of a classifier
    M  mask positions of all requests
    V  vocabulary size
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from server.encoder.grouping import PADDED, Grouping
from server.module_state import ModuleState
from server.protocol import Batching, Encode

if TYPE_CHECKING:
    from server.encoder.flat import FlatForward


class Forward(ABC):
    """Runs the module; its logits are those of a padded batch however the batch went in."""

    name: str
    batching: Batching
    is_padded: bool
    """Whether a step pays for its longest text times the number of texts."""
    grouping: Grouping | None = None
    """Which texts may share a padded batch; None where texts are not padded."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        """Of the products in the layers."""
        self.dtype_reason: str | None = None
        """Why, where the settings left it open."""
        self.num_token_types = _num_token_types(module)

    @property
    def attention(self) -> str:
        """What computes the attention, in a word."""
        return str(self.module.config._attn_implementation)

    @property
    def flat(self) -> FlatForward | None:
        """Itself where its texts lie end to end: the way that texts with adapters go. Else None."""
        return None

    @abstractmethod
    def remember(self) -> None:
        """Save the state of the module; every later step starts from it."""

    @abstractmethod
    def logits(self, batch: Sequence[Encode]) -> Tensor:
        """``[B, L]`` of a classifier, else ``[B, tokens of the longest, L]``; behind a text's end they mean nothing."""

    def logits_at(self, batch: Sequence[Encode], rows_M: Tensor, columns_M: Tensor) -> Tensor:
        """``[M, V]``: only these positions go through the layers after the base model, where those are of their own."""
        with _gathering(self.module, rows_M, columns_M) as has_gathered:
            logits = self.logits(batch)
        return logits[0] if has_gathered() else logits[rows_M, columns_M]

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class PaddedForward(Forward):
    """The module as transformers runs it, on texts that its ``grouping`` lets share a batch, padded to the longest."""

    name = "compat"
    is_padded = True

    def __init__(self, module: Any, pad_token_id: int | None, grouping: Grouping = PADDED) -> None:
        super().__init__(module)
        self._pad_token_id = pad_token_id or 0
        self.grouping: Grouping = grouping
        self.batching = grouping.batching
        self.remember()

    def remember(self) -> None:
        self._state = ModuleState(self.module)

    def logits(self, batch: Sequence[Encode]) -> Tensor:
        groups = self.grouping.groups(batch)
        if len(groups) == 1:
            return self._together(batch)
        parts = [self._together([batch[row] for row in rows]) for rows in groups]
        logits = parts[0].new_zeros(len(batch), *_widest(parts))
        for rows, part in zip(groups, parts, strict=True):
            for row, values in zip(rows, part, strict=True):
                logits[row, : len(values)] = values
        return logits

    def logits_at(self, batch: Sequence[Encode], rows_M: Tensor, columns_M: Tensor) -> Tensor:
        if len(self.grouping.groups(batch)) > 1:
            return self.logits(batch)[rows_M, columns_M]
        return super().logits_at(batch, rows_M, columns_M)

    def _together(self, batch: Sequence[Encode]) -> Tensor:
        try:
            # Some families draw random numbers: each text's are the same ones in every step.
            torch.manual_seed(0)
            logits = logits_of(self.module(**self._inputs(batch)))
        finally:
            self._state.restore()
        return logits

    def _inputs(self, batch: Sequence[Encode]) -> dict[str, Tensor]:
        longest = max(len(command.token_ids) for command in batch)
        token_ids_BL = np.full((len(batch), longest), self._pad_token_id, dtype=np.int64)
        mask_BL = np.zeros_like(token_ids_BL)
        types_BL = np.zeros_like(token_ids_BL)
        for row, command in enumerate(batch):
            length = len(command.token_ids)
            token_ids_BL[row, :length] = command.token_ids
            mask_BL[row, :length] = 1
            types_BL[row, :length] = command.token_type_ids or 0
        arrays = {"input_ids": token_ids_BL, "attention_mask": mask_BL}
        # A tokenizer that gives no types leaves them to the model, whose default need not be 0.
        if self.num_token_types and any(command.token_type_ids is not None for command in batch):
            arrays["token_type_ids"] = types_BL
        return {name: self.tensor(array) for name, array in arrays.items()}


def logits_of(output: Any) -> Tensor:
    """Of a model that answers questions ``[..., 2]``: where the answer starts, and where it ends."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    logits: Tensor = output.logits
    return logits


def _widest(parts: Sequence[Tensor]) -> list[int]:
    """The shape of one row that every part's rows fit into."""
    return [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]


def _num_token_types(module: Any) -> int:
    """How many token types the model tells apart; 0 where it takes none."""
    modules = (module, getattr(module, "base_model", module))
    if not all("token_type_ids" in inspect.signature(part.forward).parameters for part in modules):
        return 0
    num_types = getattr(module.config, "type_vocab_size", None)
    if num_types is None:
        # GPT-2's kind embeds types as it embeds tokens; XLNet only compares them.
        return int(module.get_input_embeddings().weight.shape[0])
    # With one type, or none, what a pair's template says of types means nothing to the model.
    return int(num_types) if num_types > 1 else 0


@contextmanager
def _gathering(module: nn.Module, rows_M: Tensor, columns_M: Tensor) -> Iterator[Callable[[], bool]]:
    """Within, the base model gives the vectors of these positions alone, if it gives vectors: the yielded tells."""
    has_gathered = False

    def gather(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal has_gathered
        hidden_BLH = getattr(output, "last_hidden_state", None)
        if hidden_BLH is not None and hidden_BLH is output[0]:
            output.last_hidden_state = hidden_BLH[rows_M, columns_M].unsqueeze(0)
            has_gathered = True
        return output

    base: nn.Module = getattr(module, "base_model", module)
    hook = base.register_forward_hook(gather) if base is not module else None
    try:
        yield lambda: has_gathered
    finally:
        if hook is not None:
            hook.remove()
