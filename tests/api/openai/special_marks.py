"""A front whose model has marks as special tokens, and says them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from server.protocol import Tokens
from tests.api.openai.fronts import MAX_MODEL_LEN, TOOLS_TEMPLATE, Front
from tests.api.scripted import END_ID, TOKENIZER, ScriptedWorker, ready
from tests.encoder_app import client_of

MARKS = ("<tool_call>", "</tool_call>")


@contextmanager
def fronted_with_special_marks(call: str, *, before: str = "") -> Iterator[Front]:
    """Its model says ``before``, and then ``call`` between the marks."""
    with fronted_saying(f"{before}{MARKS[0]}{call}{MARKS[1]}", TOOLS_TEMPLATE, MARKS) as front:
        yield front


@contextmanager
def fronted_saying(
    text: str, chat_template: str, special: Sequence[str] = (), sizes: Sequence[int] = ()
) -> Iterator[Front]:
    """Its model says ``text``; ``special`` are special tokens. Its replies hold ``sizes`` tokens, then one each."""
    backend = Tokenizer.from_str(TOKENIZER.files.tokenizer_json)
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in special])
    spoken = backend.encode(text, add_special_tokens=False).ids

    def script(command: Any) -> Iterator[Tokens]:
        ids = [*spoken, END_ID][: command.params.max_new_tokens]
        is_cut = len(ids) <= len(spoken)
        steps = iter(sizes)
        while ids:
            size = next(steps, 1)
            now, ids = ids[:size], ids[size:]
            yield Tokens(command.request_id, now, None if ids else "length" if is_cut else "stop")

    described = ready(vocab_size=backend.get_vocab_size(), max_model_len=MAX_MODEL_LEN)
    files = msgspec.structs.replace(described.tokenizer, tokenizer_json=backend.to_str(), chat_template=chat_template)
    worker = ScriptedWorker(script, msgspec.structs.replace(described, tokenizer=files))
    served: Any = worker
    with client_of(served) as client:
        try:
            yield Front(client, worker)
        finally:
            assert client.portal is not None
            client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]
