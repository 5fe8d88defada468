"""``GET /languages``: what can be translated into what, in LibreTranslate's shape."""

from __future__ import annotations

from fastapi import Response
from typing_extensions import TypedDict

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.libretranslate.dialect import LISTS_LANGUAGES
from server.api.http.json_reply import json_reply
from server.serving.translation import short_code, targets

router = DialectRouter(LISTS_LANGUAGES, "translation")


class LanguageReply(TypedDict):
    """A language of texts to translate, and those that they are translated into."""

    code: str
    name: str
    targets: list[str]


@router.get("/languages", response_model=list[LanguageReply])
async def languages(context: ContextDep) -> Response:
    """The languages of every served model. A code of ``/translate`` may also be the model's own, such as `fra_Latn`."""
    found: dict[str, LanguageReply] = {}
    for served in context.registry.all():
        if served.ready.languages is None:
            continue
        for source, others in targets(served.ready.languages):
            code = short_code(source)
            reply = found.setdefault(code, {"code": code, "name": source.name, "targets": []})
            reply["targets"] = sorted({*reply["targets"], *map(short_code, others)})
    return json_reply(sorted(found.values(), key=lambda reply: reply["name"]))
