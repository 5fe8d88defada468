"""Texts to entities; a document longer than the model goes through overlapping windows and comes back as one list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import InvalidParameter
from server.protocol import Encode, Ready
from server.sentences import sentence
from server.serving.admission import Admission
from server.serving.encoder_client import rows
from server.serving.record import RequestRecord
from server.serving.windowed import WindowedEncoder
from server.text.entities import Entity, Strategy, TaggedText, TokenRules, pipeline_entities, softmax
from server.text.joined import joined_entities
from server.text.tag_schemes import OUTSIDE, scheme_of
from server.text.windows import content_range, merge_rows, num_windows, plan_windows


@dataclass(frozen=True, kw_only=True)
class TagOptions:
    """What the client asked for."""

    strategy: Strategy = "joined"
    ignore_labels: frozenset[str] = frozenset({OUTSIDE})
    stride: int | None = None
    """Tokens that neighbouring windows share; None for a quarter of a window."""
    threshold: float | None = None
    """Entities with a lower score are left out."""


@dataclass(frozen=True)
class _Document:
    text: str
    encoding: Encoding
    content: range
    """Positions of the text's own tokens, between the special tokens around it. Windows count from its start."""


class ServedTagger(WindowedEncoder):
    """A token classifier."""

    def __init__(
        self, config: ServeConfig, model: ModelConfig, ready: Ready, worker: WorkerClient, admission: Admission
    ) -> None:
        super().__init__(config, model, ready, worker, admission)
        self._capacity = ready.max_model_len - ready.tokenizer.num_special_tokens
        self._default_stride = self._capacity // 4
        scheme = scheme_of(ready.labels)
        self._type_by_label = {label: tag.type for label, tag in scheme.tags.items()}
        if scheme.outside is not None:
            # Whatever its spelling, clients leave it out by the usual name.
            self._type_by_label[OUTSIDE] = scheme.outside
        self._known_labels = {OUTSIDE, *ready.labels, *self._type_by_label.values()}
        self._rules = self._token_rules()

    def describe(self) -> dict[str, Any]:
        return {
            "labels": self.ready.labels,
            "window_tokens": self.ready.max_model_len,
            "default_stride": self._default_stride,
            "max_inputs": self._max_inputs,
            "max_request_tokens": self._max_tokens,
        }

    async def tag(self, texts: Sequence[str], options: TagOptions, record: RequestRecord) -> list[list[Entity]]:
        """For each text its entities in order."""
        self._check(options)
        stride = self._default_stride if options.stride is None else options.stride
        # Once, with the first text: in the thread, and after the queue has been asked.
        check = cache(lambda: self._check_least(*texts))
        documents = await self._tokenize(lambda text: self._document(text, check), texts, sum(map(len, texts)))
        self._check_windows(documents, stride)
        plans = [plan_windows(len(document.content), self._capacity, stride) for document in documents]
        commands = [
            command
            for document, windows in zip(documents, plans, strict=True)
            for command in self._commands(document, windows, record.request_id)
        ]
        scores = iter(await self._encode(commands, record))
        logits = [[rows(next(scores)) for _ in windows] for windows in plans]
        return await asyncio.to_thread(
            lambda: [self._entities(*parts, options) for parts in zip(documents, plans, logits, strict=True)]
        )

    def _check(self, options: TagOptions) -> None:
        for label in sorted(options.ignore_labels - self._known_labels):
            raise InvalidParameter("ignore_labels", label, f"is not a label of this model: {self._label_list()}")
        if options.stride is not None and not 0 <= options.stride < self._capacity:
            raise InvalidParameter(
                "stride", options.stride, f"must be 0 to {self._capacity - 1}, less than the {self._capacity} tokens "
                "of a window"
            )  # fmt: skip

    def _label_list(self) -> str:
        return ", ".join(self.ready.labels)

    def _check_windows(self, documents: Sequence[_Document], stride: int) -> None:
        counts = [num_windows(len(document.content), self._capacity, stride) for document in documents]
        num_tokens = sum(
            count * min(len(document.content), self._capacity)
            for count, document in zip(counts, documents, strict=True)
        )
        self._check_size(
            num_tokens, sentence("Overlapping windows count twice. Send less text, or set a smaller {stride}.")
        )

    def _document(self, text: str, check: Callable[[], None]) -> _Document:
        check()
        encoding = self.tokenizer.encode(text)
        return _Document(text, encoding, content_range(encoding.special_tokens_mask))

    def _commands(self, document: _Document, windows: Sequence[range], request_id: str) -> list[Encode]:
        """Every window between the special tokens of the whole."""
        content, ids, types = document.content, document.encoding.ids, self._type_ids(document.encoding)

        def cut(values: list[int], window: range) -> list[int]:
            middle = values[content.start + window.start : content.start + window.stop]
            return values[: content.start] + middle + values[content.stop :]

        return [
            Encode(request_id, cut(ids, window), None if types is None else cut(types, window)) for window in windows
        ]

    def _entities(
        self,
        document: _Document,
        windows: Sequence[range],
        logits: Sequence[NDArray[np.float32]],
        options: TagOptions,
    ) -> list[Entity]:
        lead = document.content.start
        window_rows = [row[lead : lead + len(window)] for row, window in zip(logits, windows, strict=True)]
        tagged = self._tagged(document, softmax(merge_rows(windows, window_rows)))
        ignored = options.ignore_labels
        if options.strategy == "joined":
            entities = joined_entities(tagged)
            ignored = frozenset(self._type_by_label.get(label, label) for label in ignored)
        else:
            entities = pipeline_entities(tagged, options.strategy, self._rules)
        least = options.threshold or 0.0
        return [entity for entity in entities if entity.label not in ignored and entity.score >= least]

    def _tagged(self, document: _Document, probabilities_TL: NDArray[np.float32]) -> TaggedText:
        encoding, kept = document.encoding, slice(document.content.start, document.content.stop)
        return TaggedText(
            text=document.text,
            token_ids=encoding.ids[kept],
            tokens=encoding.tokens[kept],
            offsets=encoding.offsets[kept],
            word_ids=encoding.word_ids[kept],
            positions=document.content,
            labels=self.ready.labels,
            probabilities_TL=probabilities_TL,
        )

    def _token_rules(self) -> TokenRules:
        backend, unk = self.tokenizer.backend, self.tokenizer.files.unk_token
        model = json.loads(self.tokenizer.files.tokenizer_json)["model"]
        return TokenRules(
            joins=backend.decoder.decode if backend.decoder is not None else " ".join,
            unk_id=None if unk is None else backend.token_to_id(unk),
            marks_continuation=bool(model.get("continuing_subword_prefix")),
        )
