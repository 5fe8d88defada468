"""A front whose model has the marks of tool calls as special tokens."""

from __future__ import annotations

from collections.abc import Iterator
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
    backend = Tokenizer.from_str(TOKENIZER.files.tokenizer_json)
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    start, end = (backend.token_to_id(mark) for mark in MARKS)

    def script(command: Any) -> Iterator[Tokens]:
        for token_id in (*TOKENIZER.encode(before).ids, start, *TOKENIZER.encode(call).ids, end):
            yield Tokens(command.request_id, [token_id])
        yield Tokens(command.request_id, [END_ID], "stop")

    described = ready(vocab_size=backend.get_vocab_size(), max_model_len=MAX_MODEL_LEN)
    files = msgspec.structs.replace(described.tokenizer, tokenizer_json=backend.to_str(), chat_template=TOOLS_TEMPLATE)
    worker = ScriptedWorker(script, msgspec.structs.replace(described, tokenizer=files))
    served: Any = worker
    with client_of(served) as client:
        try:
            yield Front(client, worker)
        finally:
            assert client.portal is not None
            client.portal.call(client.app.state.registry.services.close)  # type: ignore[attr-defined]
