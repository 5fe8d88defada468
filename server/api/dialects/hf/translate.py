"""``POST /translate``: texts into another language, for Hugging Face's clients and for LibreTranslate's.

``inputs`` is Hugging Face's field and gets its answer; ``q`` is LibreTranslate's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Response
from pydantic import Field

from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import StrictModel, TextOrTexts
from server.api.context import Context, ContextDep
from server.api.dialects.hf.rewriting import (
    RewriteParameters,
    Rewriter,
    Rewriting,
    Split,
    options_of,
    reader,
    rewritten,
)
from server.api.dialects.libretranslate.dialect import TRANSLATE
from server.api.http.json_reply import json_reply
from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest, UnsupportedParameter
from server.sentences import Reader, sentence
from server.serving.generator import ServedGenerator
from server.serving.hypotheses import best, max_hypotheses
from server.serving.options.table import GenerateOptions
from server.serving.translation import choose, has_certain_source
from server.text.languages import Direction
from server.text.sentence_split import has_words

router = DialectRouter(TRANSLATE, "translation")

OF_LIBRETRANSLATE = ("source", "target", "format", "alternatives", "api_key")
OF_HUGGING_FACE = ("parameters", "stream")
AUTO = "auto"
KEY = "translation_text"


class TranslateParameters(RewriteParameters):
    """The languages, and every option of ``/generate``."""

    src_lang: str | None = None
    """The language of the text: a code of the model or a short one, such as ``fra_Latn`` or ``fr``. Needed where the
    model has several."""
    tgt_lang: str | None = None
    """The language to translate into."""


class TranslateRequest(StrictModel):
    """Body of ``POST /translate``."""

    inputs: TextOrTexts | None = None
    """A text, or a list that must contain at least one text. inputs is required, unless there is q. They belong to
    different APIs; send only one."""
    parameters: TranslateParameters | None = None
    """With inputs."""
    stream: bool | None = None
    """Send each token as a server-sent event. Only a single input can be streamed. With inputs."""
    q: TextOrTexts | None = None
    """Instead of inputs; the response then has LibreTranslate's shape. A text without a letter or digit is returned
    unchanged."""
    source: str | None = None
    """The language of q. ``auto`` is for models that read one language or need none. It goes with q."""
    target: str | None = None
    """The language to translate q into. It goes with q."""
    format: str | None = None
    """Must be text, the default: markup is not understood. It goes with q."""
    alternatives: Annotated[int, Field(json_schema_extra={"minimum": 0})] | None = None
    """How many more translations to return, from a beam search. It goes with q."""
    api_key: str | None = None
    """The API key, where neither Authorization nor x-api-key is sent and the body has at most 65536 bytes. A server
    without keys ignores it. It goes with q."""
    split: Split | None = None
    """``sentences`` translates each sentence by itself and joins the translations, for texts that are longer than the
    model takes. Without it a text that is too long is refused."""
    model: str | None = None
    """The name of a served encoder-decoder model; without it the first that translates the languages."""

    def fields(self) -> dict[str, Any]:
        """For the rules on options."""
        return {name: value for name in ("inputs", "stream") if (value := getattr(self, name)) is not None}


@router.post("/translate", response_model=None)
async def translate(body: TranslateRequest, context: ContextDep) -> Response:
    """Translate a text, or each of a list.

    The response to ``inputs`` is a list with an object for each text; with ``stream`` it is one event per token. The
    response to ``q`` is one object.
    """
    if body.q is not None:
        return await _libretranslate(body, context)
    if body.inputs is None:
        raise InvalidRequest("inputs is required, unless there is q.", param="inputs")
    _check_alone(body, "inputs", OF_LIBRETRANSLATE, "q")
    parameters = body.parameters or TranslateParameters()
    context.record.reader = reader(parameters)
    models = context.registry.encoder_decoders(body.model)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    served, direction = choose(models, parameters.src_lang, parameters.tgt_lang, texts)
    wanted = Rewriting(
        texts=texts,
        key=KEY,
        options=options_of(parameters, served.ready.max_source_len),
        direction=direction,
        task_defaults=served.translation_defaults(direction),
        split=body.split,
        is_cleaned=bool(parameters.clean_up_tokenization_spaces),
        body=body.fields(),
    )
    return await rewritten(context, served, wanted)


def _check_alone(body: TranslateRequest, name: str, others: tuple[str, ...], needed: str) -> None:
    for other in others:
        if getattr(body, other) not in (None, False):
            raise InvalidRequest(f"{other} requires {needed}, and the request has {name}.", param=other)


async def _libretranslate(body: TranslateRequest, context: Context) -> Response:
    assert body.q is not None, "it has called this"
    if body.inputs is not None:
        raise ConflictingParameters("inputs", "q", "they belong to different APIs; send only one")
    context.record.reader = Reader({"inputs": "q", "src_lang": "source", "tgt_lang": "target"})
    _check_alone(body, "q", OF_HUGGING_FACE, "inputs")
    if body.format not in (None, "text"):
        raise UnsupportedParameter("format", "markup is not understood; send plain text and format: text")
    if not body.q:
        raise InvalidParameter("inputs", body.q, "must not be empty")
    texts = [body.q] if isinstance(body.q, str) else body.q
    served, direction = _direction(body, context, [text for text in texts if has_words(text)])
    of_languages = served.translation_defaults(direction)
    options = _with_alternatives(body.alternatives or 0, served, of_languages)
    wanted = Rewriting(
        texts=texts,
        key=KEY,
        options=options,
        direction=direction,
        task_defaults=of_languages,
        split=body.split,
        several="alternatives",
        keeps_wordless=True,
    )
    record = context.record
    record.task, record.model, record.num_inputs = served.ready.task, served.name, len(texts)
    rewriter = Rewriter(context, served, wanted)
    await rewriter.prepare()
    return json_reply(_answer(await rewriter.replies(), body))


def _direction(body: TranslateRequest, context: Context, texts: list[str]) -> tuple[ServedGenerator, Direction]:
    models = context.registry.encoder_decoders(body.model)
    if body.source != AUTO:
        return choose(models, body.source, body.target, texts)
    certain = [served for served in models if has_certain_source(served.ready.languages)]
    if not certain:
        raise InvalidParameter(
            "source", AUTO, "must name the language of the text: this server does not detect languages"
        )
    return choose(certain, None, body.target, texts)


def _with_alternatives(count: int, served: ServedGenerator, of_languages: Mapping[str, Any]) -> GenerateOptions:
    """The best hypotheses of a beam search."""
    limit = max_hypotheses(served) - 1
    if not 0 <= count <= limit:
        rule = sentence("must be from 0 to {limit}, for each one is a beam", limit=limit)
        raise InvalidParameter("alternatives", count, rule)
    return GenerateOptions(**best(count + 1, served, of_languages))


def _answer(replies: list[dict[str, Any]], body: TranslateRequest) -> dict[str, Any]:
    """Lists for a list."""
    is_one = isinstance(body.q, str)
    texts = [reply[KEY] for reply in replies]
    answer: dict[str, Any] = {"translatedText": texts[0] if is_one else texts}
    if body.alternatives:
        others = [reply.get(f"{KEY}s", [])[1:] for reply in replies]
        answer["alternatives"] = others[0] if is_one else others
    return answer
