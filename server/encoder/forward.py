"""One step through an encoder's module: token ids in, logits out, with padding or with texts laid end to end.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from server.encoder.attention import laid_out
from server.encoder.grouping import PADDED, Grouping
from server.module_state import ModuleState
from server.modules.texts import Texts
from server.native import kernels
from server.protocol import Batching, Encode

Numbering = Callable[[Texts, "np.ndarray"], "np.ndarray"]
"""Position ids ``[T]`` of texts and their token ids ``[T]``."""


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

    def _tensor(self, array: np.ndarray) -> Tensor:
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
            logits = _logits(self.module(**self._inputs(batch)))
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
        return {name: self._tensor(array) for name, array in arrays.items()}


class FlatForward(Forward):
    """Texts laid end to end as one row; from ``core`` on, whose output is every token's vector, they are padded.

    So whatever comes after ``core``, poolers and heads, sees what it always sees.
    """

    batching = "end to end"
    is_padded = False

    def __init__(self, module: Any, core: nn.Module, numbering: Numbering, name: str) -> None:
        super().__init__(module)
        self.name = name
        self.core = core
        self._numbering = numbering
        self._texts = Texts([])

    @property
    def attention(self) -> str:
        return "native" if kernels.has("encoder_attention") else "sdpa"

    def remember(self) -> None:
        """No step changes the module: that was tried."""

    def logits(self, batch: Sequence[Encode]) -> Tensor:
        self._texts = texts = Texts([len(command.token_ids) for command in batch], self.device)
        token_ids_T = np.concatenate([command.token_ids for command in batch]).astype(np.int64)
        arrays = {"input_ids": token_ids_T, "position_ids": self._numbering(texts, token_ids_T)}
        if self.num_token_types:
            types = [command.token_type_ids or [0] * len(command.token_ids) for command in batch]
            arrays["token_type_ids"] = np.concatenate(types).astype(np.int64)
        inputs = {name: self._tensor(array)[None] for name, array in arrays.items()}
        # For heads that take a mean over the tokens of a text; attention needs none.
        inputs["attention_mask"] = self._tensor(texts.mask)
        # Before the hooks of others: what they see of a core is padded.
        hook = self.core.register_forward_hook(self._pad, prepend=True)
        try:
            with laid_out(texts):
                logits = _logits(self.module(**inputs))
        finally:
            hook.remove()
        return logits

    def _pad(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._padded(output)
        if isinstance(output, tuple):
            return (self._padded(output[0]), *output[1:])
        output.last_hidden_state = self._padded(output.last_hidden_state)
        return output

    def _padded(self, hidden: Tensor) -> Tensor:
        """A core that has already reduced its texts to what the head reads gives ``[B, ...]`` itself."""
        is_flat = hidden.shape[0] == 1 and hidden.shape[1] == self._texts.starts[-1]
        return self._texts.pad(hidden[0]) if is_flat else hidden


def plain_numbering(texts: Texts, _token_ids_T: np.ndarray) -> np.ndarray:
    """Positions from 0."""
    return texts.positions


def numbering_after(padding_id: int) -> Numbering:
    """As RoBERTa counts: from the number after the padding's on; a padding token inside of a text is not counted."""

    def positions(texts: Texts, token_ids_T: np.ndarray) -> np.ndarray:
        is_token = token_ids_T != padding_id
        counts = np.cumsum(is_token)
        before = np.repeat((counts - is_token)[texts.starts[:-1]], texts.lengths)
        return np.where(is_token, counts - before, 0) + padding_id

    return positions


def _logits(output: Any) -> Tensor:
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
