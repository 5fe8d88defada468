"""Texts to token ids and back for whoever wants to count or to look; no worker is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidParameter
from server.serving import text_threads
from server.serving.registry import Served
from server.serving.templates import Templates
from server.text.templated import encode_rendered


async def text_ids(served: Served, text: str, *, add_special_tokens: bool) -> list[int]:
    """As ``/generate`` and the encoder routes read the text, where special tokens are added."""
    [ids] = await text_threads.each(
        lambda text: served.tokenizer.encode(text, None, add_special_tokens).ids, [text], len(text)
    )
    return ids


async def chat_ids(
    served: Served,
    templates: Templates,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    add_special_tokens: bool,
) -> list[int]:
    """As a chat with these messages reads them; a chat template writes its own special tokens."""
    rendered = await templates.render_chat(
        served.ready.tokenizer, messages, options, tools=tools, add_generation_prompt=add_generation_prompt
    )
    rendered = dataclasses.replace(rendered, add_special_tokens=add_special_tokens)
    [tokens] = await text_threads.each(
        lambda text: encode_rendered(served.tokenizer, text), [rendered], len(rendered.text)
    )
    return tokens.ids


async def text_of(served: Served, token_ids: Sequence[int]) -> str:
    """Special tokens as they are written."""
    [text] = await text_threads.each(
        lambda ids: served.tokenizer.decode(_checked(served, ids), False), [token_ids], len(token_ids)
    )
    return text


async def pieces(served: Served, token_ids: Sequence[int]) -> list[str]:
    """Each token as its vocabulary writes it."""
    backend = served.tokenizer.backend
    return await text_threads.each(lambda id_: backend.id_to_token(id_) or "", token_ids, len(token_ids))


def describe_tokenizer(served: Served) -> dict[str, Any]:
    """What a client needs to tokenise as the server does."""
    files = served.ready.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")
    tokens = {name: getattr(files, name) for name in names}
    token_to_id = served.tokenizer.backend.token_to_id
    ids = {f"{name}_id": None if token is None else token_to_id(token) for name, token in tokens.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": served.ready.max_model_len,
        "truncation_side": files.truncation_side,
        "vocab_size": served.ready.vocab_size,
        **tokens,
        **ids,
        "chat_template": files.chat_template,
    }


def _checked(served: Served, token_ids: Sequence[int]) -> list[int]:
    size = served.ready.vocab_size
    for token_id in token_ids:
        if not 0 <= token_id < size:
            raise InvalidParameter("tokens", token_id, f"must be a token id, 0 to {size - 1}")
    return list(token_ids)
