"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: a model's tokenizer, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Response

from server.api.bodies.fields import LenientModel, Refusal
from server.api.bodies.lookup import MEAN_THE_DEFAULT
from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import NOT_EMPTY, STOP_AT_FIRST_ERROR, Ids
from server.api.context import Context, ContextDep
from server.api.dialects.vllm.dialect import VLLM
from server.api.http.json_reply import json_reply
from server.api.text.messages import template_messages, template_tools
from server.api.text.schemas import ChatMessage, Tool
from server.errors import ConflictingParameters, InvalidRequest
from server.serving import tokenizing
from server.serving.registry import Served

router = DialectRouter(VLLM, "tokenizer")

REFUSED = {
    "chat_template": Refusal("messages are rendered with the chat template of the model's folder"),
    "continue_final_message": Refusal("a chat always begins a new turn", (False,)),
}
OF_MESSAGES = ("add_generation_prompt", "chat_template_kwargs", "tools")


class TokenizeBody(LenientModel):
    """Body of ``POST /tokenize``: a ``prompt``, or ``messages`` for the model's chat template."""

    refused = REFUSED

    prompt: str | None = None
    """Send either prompt or messages."""
    messages: Annotated[list[ChatMessage], STOP_AT_FIRST_ERROR, NOT_EMPTY] | None = None
    """1 to 1024 entries."""
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    """For messages: send no prompt with it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """For messages: send no prompt with it. Each value must be a string, a number, true or false."""
    tools: Annotated[list[Tool], STOP_AT_FIRST_ERROR] | None = None
    """For messages: send no prompt with it."""
    return_token_strs: bool | None = None
    model: str | None = None


class DetokenizeBody(LenientModel):
    """Body of ``POST /detokenize``."""

    tokens: Ids
    """Each must be a token id: 0 to the vocabulary's size, less 1."""
    model: str | None = None


@router.post("/tokenize", response_model=None)
async def tokenize(body: TokenizeBody, context: ContextDep) -> Response:
    """The tokens of a text, special ones added unless ``add_special_tokens`` is false, or of a chat."""
    served = _served(context, body.model)
    ids = await context.until_disconnect(_ids(body, served, context))
    strings = await tokenizing.pieces(served, ids) if body.return_token_strs else None
    length = served.ready.max_model_len
    return json_reply({"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": strings})


@router.post("/detokenize", response_model=None)
async def detokenize(body: DetokenizeBody, context: ContextDep) -> Response:
    """The text of tokens together, special ones as they are written."""
    served = _served(context, body.model)
    return json_reply({"prompt": await context.until_disconnect(tokenizing.text_of(served, body.tokens))})


@router.get("/tokenizer_info", response_model=None)
async def tokenizer_info(context: ContextDep, model: str | None = None) -> dict[str, Any]:
    """Special tokens, limits and chat template, under the names of a tokenizer_config.json."""
    context.record.route = "/tokenizer_info"
    return tokenizing.describe_tokenizer(_served(context, model))


async def _ids(body: TokenizeBody, served: Served, context: Context) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Send either prompt or messages.", param="prompt")
    if body.prompt is not None:
        for name in OF_MESSAGES:
            if getattr(body, name) is not None:
                raise ConflictingParameters(name, "prompt", f"{name} is for messages")
        return await tokenizing.text_ids(served, body.prompt, add_special_tokens=body.add_special_tokens is not False)
    return await tokenizing.chat_ids(
        served,
        context.registry.services.templates,
        template_messages(body.messages or [], served.ready.tokenizer.chat_template or ""),
        body.chat_template_kwargs or {},
        template_tools(body.tools or []),
        add_generation_prompt=body.add_generation_prompt is not False,
        add_special_tokens=bool(body.add_special_tokens),
    )


def _served(context: Context, name: str | None) -> Served:
    """The model of that name, of any task; without a name the one that generates."""
    served = context.registry.find(None if name in MEAN_THE_DEFAULT else name)
    context.record.model = served.name
    return served
