"""One step through an encoder's module with texts laid end to end: token ids in, logits out.

Dimension key
    T  tokens of all requests
    R  tokens that go on after the last layer
    L  tokens of the longest, or labels of a classifier
    B  requests in the step
    H  hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from server.encoder.attention import laid_out
from server.encoder.forward import Forward, logits_of
from server.modules.adapted import Parts
from server.modules.texts import Texts
from server.native import kernels
from server.native.adapted import Deltas, Runs, adapting
from server.protocol import Encode

Numbering = Callable[[Texts, "np.ndarray"], "np.ndarray"]
"""Position ids ``[T]`` of texts and their token ids ``[T]``."""


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
        self.parts: Parts = {}
        """Products of the core by name of the linear layer in the base model: what adapters can change."""
        self.reads_first_only = bool(getattr(core, "reads_first_only", False))
        """Whether the module reads each text's first token alone."""
        self._numbering = numbering
        self._texts = Texts([])

    @property
    def flat(self) -> FlatForward:
        return self

    @property
    def attention(self) -> str:
        return "native" if kernels.has("encoder_attention") else "sdpa"

    def remember(self) -> None:
        """No step changes the module: that was tried."""

    def logits(self, batch: Sequence[Encode]) -> Tensor:
        self._texts = texts = self.texts(batch, [self.reads_first_only] * len(batch))
        # Before the hooks of others: what they see of a core is padded.
        hook = self.core.register_forward_hook(self._pad, prepend=True)
        try:
            with laid_out(texts):
                logits = logits_of(self.module(**self._inputs(batch, texts)))
        finally:
            hook.remove()
        return logits

    def texts(self, batch: Sequence[Encode], first_only: Sequence[bool]) -> Texts:
        """How the batch lies in a step after whose layers some texts go on with their first tokens alone.

        Layers that are not ours compute all tokens.
        """
        has_choice = hasattr(self.core, "reads_first_only")
        lengths = [len(command.token_ids) for command in batch]
        return Texts(lengths, self.device, first_only=first_only if has_choice else ())

    def vectors(self, batch: Sequence[Encode], texts: Texts, deltas: Sequence[Deltas | None]) -> Tensor:
        """``[R, H]``: what the core makes of texts with these adapters, one for each text."""
        of_tokens = Runs.of(list(zip(deltas, texts.lengths, strict=True)))
        of_wanted = Runs.of(list(zip(deltas, texts.wanted_lengths, strict=True)))
        runs = {sum(texts.wanted_lengths): of_wanted, texts.starts[-1]: of_tokens}
        hook = self.core.register_forward_hook(_stop, prepend=True)
        try:
            with laid_out(texts), adapting(runs):
                self.module(**self._inputs(batch, texts))
        except _Reached as reached:
            hidden: Tensor = reached.hidden
            return hidden.flatten(0, 1)
        finally:
            hook.remove()
        raise AssertionError("the core was not called")

    @contextmanager
    def given(self, hidden_RH: Tensor) -> Iterator[None]:
        """Within, the core makes this of the batch that `logits` runs, whatever it is given."""
        hidden = hidden_RH[:, None] if self.reads_first_only else hidden_RH[None]
        output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
        self.core.forward = lambda *_args, **_options: output
        try:
            yield
        finally:
            del self.core.forward

    def _inputs(self, batch: Sequence[Encode], texts: Texts) -> dict[str, Tensor]:
        token_ids_T = np.concatenate([command.token_ids for command in batch]).astype(np.int64)
        arrays = {"input_ids": token_ids_T, "position_ids": self._numbering(texts, token_ids_T)}
        if self.num_token_types:
            types = [command.token_type_ids or [0] * len(command.token_ids) for command in batch]
            arrays["token_type_ids"] = np.concatenate(types).astype(np.int64)
        inputs = {name: self.tensor(array)[None] for name, array in arrays.items()}
        # For heads that take a mean over the tokens of a text; attention needs none.
        inputs["attention_mask"] = self.tensor(texts.mask)
        return inputs

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


class _Reached(Exception):
    """The core has run. Nothing reads what comes after it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _stop(_module: nn.Module, _args: Any, output: Any) -> None:
    raise _Reached(output if isinstance(output, Tensor) else output[0])


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
