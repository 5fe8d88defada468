"""Grammars without a model: processors made from grammar texts, and the sets of tokens that they allow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from server.engine.grammar import GrammarCompiler
from server.engine.processors.base import Start
from server.engine.processors.grammar import GrammarMask
from server.protocol import SamplingParams
from server.vocabulary import Vocabulary

END = 0
"""Without text in every vocabulary here."""


class Words:
    """A vocabulary of given pieces; its first tokens have no text."""

    def __init__(self, pieces: Iterable[str | bytes], num_special: int = 2) -> None:
        tokens = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.tokens = [b""] * num_special + tokens
        self.special_ids = frozenset(range(num_special))

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id] if token_id < len(self.tokens) else b""

    def all_bytes(self) -> Iterable[bytes]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def ids(self, *pieces: str) -> list[int]:
        return [self.tokens.index(piece.encode()) for piece in pieces]


def lark(text: str) -> str:
    """A grammar as the front writes it."""
    return json.dumps({"grammars": [{"lark_grammar": f'%llguidance {{"no_forcing": true}}\n{text}'}]})


def start(
    compiler: GrammarCompiler, grammar: str, output_ids: Sequence[int] = (), vocabulary: Any = None, **params: Any
) -> Start:
    params.setdefault("end_token_ids", (END,))
    return Start(
        params=SamplingParams(max_new_tokens=64, grammar=grammar, **params),
        prompt_ids=np.array([1]),
        output_ids=np.array(output_ids, dtype=np.int64),
        ending_ids=frozenset(params["end_token_ids"]),
        max_tokens=65,
        vocabulary=vocabulary,
        grammar=compiler.get(grammar),
    )


def processor(
    vocabulary: Vocabulary, grammar: str, output_ids: Sequence[int] = (), vocab_size: int | None = None, **params: Any
) -> GrammarMask:
    compiler = GrammarCompiler(vocabulary, vocab_size or len(vocabulary))  # type: ignore[arg-type]
    made = GrammarMask.for_sequence(start(compiler, grammar, output_ids, vocabulary, **params))
    assert made is not None
    return made


def allowed(*processors: GrammarMask, vocab_size: int) -> list[list[int]]:
    """Of each processor, the tokens that its rule leaves."""
    logits_SV = torch.zeros(len(processors), vocab_size)
    GrammarMask.apply(logits_SV, list(range(len(processors))), list(processors))
    return [row.isfinite().nonzero().flatten().tolist() for row in logits_SV]
