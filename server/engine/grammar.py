"""The grammars that outputs follow, compiled in a thread beside the step loop. Knows llguidance, no sequence.

llguidance gets the model's vocabulary as bytes and one token more, `GrammarCompiler.end_id`: "the text may end here".
What ends a sequence is the request's affair. No token is forced to be the tokenizer's own choice: a grammar
allows exactly the tokens after which its language can still be reached, as it would if it were looked up.

Dimension key
    R  matchers whose masks are computed together
    W  bytes of one mask, one bit a token, the first token in the lowest bit
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from server.grammars import compile_grammar
from server.vocabulary import Vocabulary

MAX_CACHE_BYTES = 256 * 1024 * 1024
GRAMMAR_BYTES = 64 * 1024
BYTES_PER_CHARACTER = 48
"""What a compiled grammar takes, about: measured on schemas of 300 to 20,000 characters."""

MaskArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Masks:
    """What the grammars allow at the places of some matchers."""

    allowed_RW: MaskArray
    may_end_R: list[bool]
    """Whether the text so far is complete."""


class MaskFiller:
    """Computes masks, in a thread of its own where the caller has something else to do meanwhile."""

    def __init__(self, num_bits: int) -> None:
        self._num_words = -(-num_bits // 32)
        self._executor = LLExecutor(num_threads=1)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-masks")

    def fill(self, matchers: list[LLMatcher]) -> Masks:
        """Gives up the interpreter's lock but for moments."""
        masks = np.zeros((len(matchers), self._num_words), dtype=np.int32)
        may_end = [matcher.is_accepting() for matcher in matchers]
        places = [(matcher, row) for row, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, self._num_words * 4, len(matchers))
        return Masks(masks.view(np.uint8), may_end)

    def start(self, matchers: list[LLMatcher]) -> Future[Masks]:
        """Nobody may touch the matchers before the result is there."""
        return self._pool.submit(self.fill, matchers)


@dataclass(frozen=True, slots=True)
class Grammar:
    """One compiled grammar, shared by the sequences that follow it."""

    _beginning: LLMatcher
    filler: MaskFiller
    end_id: int

    def matcher(self) -> LLMatcher:
        """A matcher at the beginning of the text, which belongs to the caller."""
        return self._beginning.deep_copy()


class GrammarCompiler:
    """Compiles grammars and keeps those used last, within `MAX_CACHE_BYTES` by estimate.

    All methods are for one thread, the engine's. The tokens' trie is built with the first grammar: a model that nobody
    asks for structured output costs nothing.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, *, max_cache_bytes: int = MAX_CACHE_BYTES) -> None:
        self.end_id = vocab_size
        self._vocabulary = vocabulary
        self._max_cache_bytes = max_cache_bytes
        self._num_cached_bytes = 0
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._pending: dict[str, Future[Grammar]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-compiler")
        self._tokenizer: LLTokenizer | None = None
        self._filler = MaskFiller(vocab_size + 1)

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    @property
    def num_cached_bytes(self) -> int:
        """By estimate."""
        return self._num_cached_bytes

    def ready(self, grammar: str) -> bool:
        """Whether `get` answers at once. If not, compiling has begun and a later call will tell.

        Raises `UnsupportedGrammar` when that has failed: no sequence can follow the grammar.
        """
        if grammar in self._compiled:
            return True
        future = self._pending.get(grammar)
        if future is None:
            self._pending[grammar] = self._pool.submit(self._compile, grammar)
            return False
        if not future.done():
            return False
        del self._pending[grammar]
        self._keep(grammar, future.result())
        return True

    def get(self, grammar: str) -> Grammar:
        """The compiled grammar; waits for it where `ready` was not asked or is false."""
        if grammar not in self._compiled:
            future = self._pending.pop(grammar, None) or self._pool.submit(self._compile, grammar)
            self._keep(grammar, future.result())
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]

    def wait(self, timeout_s: float) -> None:
        """Until one more grammar is compiled, for an engine that has nothing else to do."""
        wait(self._pending.values(), timeout_s, return_when="FIRST_COMPLETED")

    def forget(self, grammar: str) -> None:
        """Nobody waits for the grammar any more: what comes of its compiling is dropped."""
        self._pending.pop(grammar, None)

    def _compile(self, grammar: str) -> Grammar:
        """In the thread."""
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(_TokenTable(self._vocabulary, self.end_id))  # type: ignore[arg-type]
        return Grammar(compile_grammar(self._tokenizer, grammar), self._filler, self.end_id)

    def _keep(self, grammar: str, compiled: Grammar) -> None:
        self._compiled[grammar] = compiled
        self._num_cached_bytes += _estimated_bytes(grammar)
        while self._num_cached_bytes > self._max_cache_bytes and len(self._compiled) > 1:
            oldest, _ = self._compiled.popitem(last=False)
            self._num_cached_bytes -= _estimated_bytes(oldest)


def _estimated_bytes(grammar: str) -> int:
    return GRAMMAR_BYTES + BYTES_PER_CHARACTER * len(grammar)


class _TokenTable:
    """What `LLTokenizer` asks of a tokenizer. A token without bytes is part of no text: no grammar allows it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, vocabulary: Vocabulary, end_id: int) -> None:
        tokens = list(vocabulary.all_bytes())[:end_id]
        # The model's rows may be more than the tokenizer's tokens.
        self.tokens = [*tokens, *[b""] * (end_id - len(tokens)), b""]
        self.eos_token_id = end_id

    def __call__(self, text: bytes | str) -> list[int]:  # noqa: ARG002
        """Tokens of a forced text: never asked for, as grammars force none; llguidance takes its own then."""
        return []
