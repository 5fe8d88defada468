"""What the encoder tasks share: text to token ids in a thread, admission, and the way to the worker and back."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray

from server import caller
from server.client.adapters import AdapterVersion
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import DeadlineExceeded, InvalidParameter
from server.length_errors import BatchTooLarge, InputTooLong
from server.protocol import Encode, Ready, Scores
from server.sentences import Words, sentence
from server.serving import text_threads
from server.serving.admission import Admission
from server.serving.origin import Origin
from server.serving.record import RequestRecord
from server.text.tokenizer import tokenizer_of
from server.text.truncation import Truncation, kept_positions

T = TypeVar("T")
R = TypeVar("R")

HOW_TO_FIT = sentence("Shorten it, or set {truncate to true} to cut it.")


class ServedEncoder(ABC):
    """One served encoder: several inputs run side by side, and the failure of one ends the others."""

    origin: Origin
    """Set by the registry."""
    adapter: AdapterVersion | None = None
    """Of the worker's model, held as long as any of its requests runs. Set by the registry."""
    _shorten: ClassVar[Words] = HOW_TO_FIT
    """What to do with an input that is too long."""

    def __init__(
        self,
        config: ServeConfig,
        model: ModelConfig,
        ready: Ready,
        worker: WorkerClient,
        admission: Admission,
    ) -> None:
        self.name = model.name
        self.ready = ready
        self.tokenizer = tokenizer_of(ready.tokenizer, ready.vocab_size)
        self._max_inputs = config.max_encode_inputs
        self._timeout_s = config.request_timeout_s
        self._worker = worker
        self._admission = admission

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """This model's part of ``/info``."""

    def check_size(self, num_inputs: int) -> None:
        """Raise `BatchTooLarge` for more than one request may have."""
        if num_inputs > self._max_inputs:
            raise BatchTooLarge(num_inputs, self._max_inputs)

    async def _tokenize(self, tokenize: Callable[[T], R], inputs: Sequence[T], num_characters: int) -> list[R]:
        """Refuses before it works; then every input in one go, off the event loop. All have ``num_characters``."""
        if not inputs:
            raise InvalidParameter("inputs", [], "must contain at least one text")
        self.check_size(len(inputs))
        self._admission.check()
        return await text_threads.each(tokenize, inputs, num_characters)

    def _check_least(self, *texts: str) -> None:
        """Raise for texts that are together certainly too long, before they are read."""
        limit = self.ready.max_model_len
        num_tokens = sum(self.tokenizer.at_least(text, limit) for text in texts)
        if num_tokens > limit:
            raise InputTooLong(num_tokens, limit, self._shorten, is_least=True)

    def _fitted(self, encoding: tokenizers.Encoding, truncation: Truncation | None, request_id: str) -> Encode:
        """The command for a text or pair; one that is longer than it may be is cut as the client wants, or refused."""
        ids, type_ids = encoding.ids, self._type_ids(encoding)
        limit = self.ready.max_model_len
        if truncation is None:
            if len(ids) > limit:
                raise InputTooLong(len(ids), limit, self._shorten)
            return Encode(request_id, ids, type_ids)
        limit = min(limit, truncation.max_tokens or limit)
        if len(ids) <= limit:
            return Encode(request_id, ids, type_ids)
        kept = kept_positions(encoding.sequence_ids, limit, truncation.side or self.tokenizer.files.truncation_side)
        kept_types = None if type_ids is None else [type_ids[i] for i in kept]
        return Encode(request_id, [ids[i] for i in kept], kept_types)

    def _fitted_ids(self, ids: list[int], truncation: Truncation | None, request_id: str) -> Encode:
        """The command for a client's own token ids, none of which is of the tokenizer's making."""
        limit = self.ready.max_model_len
        if truncation is None and len(ids) > limit:
            raise InputTooLong(len(ids), limit, self._shorten)
        if truncation is not None:
            side = truncation.side or self.tokenizer.files.truncation_side
            most = min(limit, truncation.max_tokens or limit)
            ids = ids[-most:] if side == "left" else ids[:most]
        return Encode(request_id, ids, [0] * len(ids) if self.tokenizer.files.gives_token_types else None)

    def _type_ids(self, encoding: tokenizers.Encoding) -> list[int] | None:
        """None where transformers would give the model none, whatever the tokenizer's template says of types."""
        return encoding.type_ids if self.tokenizer.files.gives_token_types else None

    async def _encode(
        self, commands: Sequence[Encode], record: RequestRecord, *, is_part: bool = False
    ) -> list[Scores]:
        """Scores in the order of the commands. One HTTP request holds one place in the queue, and all its tokens."""
        if not all(command.token_ids for command in commands):
            raise InvalidParameter("inputs", "", "must have at least one token")
        num_tokens = sum(len(command.token_ids) for command in commands)
        record.prompt_tokens += num_tokens
        with self._admission.admit(num_tokens, is_part=is_part):
            who, adapter = caller.current().id, "" if self.adapter is None else self.adapter.digest
            owned = [msgspec.structs.replace(command, caller=who, adapter=adapter) for command in commands]
            tasks = [asyncio.ensure_future(self._worker.encode(command, record.note_start)) for command in owned]
            try:
                async with asyncio.timeout(record.time_left_s(self._timeout_s)):
                    return await asyncio.gather(*tasks)
            except TimeoutError:
                raise DeadlineExceeded("The time limit passed before the response.") from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def rows(scores: Scores) -> NDArray[np.float32]:
    """The worker's numbers, in the shape it names."""
    return np.frombuffer(scores.data, dtype="<f4").reshape(scores.shape)
