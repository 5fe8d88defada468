"""LibreTranslate's ways, on a path that it shares with Hugging Face's: the body tells which client asks."""

from __future__ import annotations

from typing import Any

from server.api.http.dialect import MAX_MESSAGE_CHARACTERS, SLUICE, Dialect
from server.api.http.errors import PathNotFound
from server.api.http.form_body import Form
from server.errors import SluiceError

FORM = Form(required="q", texts=("source", "target", "format", "api_key", "split", "model"), integers=("alternatives",))


class LibreTranslate(Dialect):
    error_schema = "LibreTranslateErrorReply"
    status_of_invalid = 400
    form = FORM

    def error(self, error: SluiceError, request_id: str) -> dict[str, Any]:  # noqa: ARG002
        """A sentence alone."""
        return {"error": error.message[:MAX_MESSAGE_CHARACTERS]}


LIBRETRANSLATE = LibreTranslate()


class Translate(Dialect):
    """Our own ways, unless the body has LibreTranslate's ``q`` or cannot be read."""

    error_schema = "TranslateErrorReply"
    has_key_in_body = True
    form = FORM

    def of_body(self, body: Any) -> Dialect:
        return LIBRETRANSLATE if isinstance(body, dict) and "q" in body else SLUICE

    def of_form(self) -> Dialect:
        return LIBRETRANSLATE

    def of_unread(self) -> Dialect:
        """Clients of Hugging Face read a sentence too: its own API sends one."""
        return LIBRETRANSLATE

    def statuses_at(self, status: int) -> tuple[int, ...]:
        return tuple(dict.fromkeys((SLUICE.status_at(status), LIBRETRANSLATE.status_at(status))))


TRANSLATE = Translate()


class ListsLanguages(LibreTranslate):
    """A GET may have a body with the key."""

    has_key_in_body = True
    form = Form(required="api_key")


LISTS_LANGUAGES = ListsLanguages()


class Missing(LibreTranslate):
    """A path of LibreTranslate's that does not exist here. The error says what is missing."""

    has_key_in_body = True
    form = Form(required="q", texts=("s", "source", "target", "format", "api_key"))

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def error(self, error: SluiceError, request_id: str) -> dict[str, Any]:
        if isinstance(error, PathNotFound):
            return {"error": f"This path does not exist: {self._reason}."}
        return super().error(error, request_id)


MISSING: dict[str, Dialect] = {
    "/detect": Missing("this server does not detect languages; name the language of the text as source"),
    "/suggest": Missing("this server does not collect better translations"),
    "/translate_file": Missing("this server does not translate files; send their text to /translate"),
    "/frontend/settings": Missing("this server has a page of its own; /languages lists what it translates"),
}
"""Paths of LibreTranslate's that do not exist here."""
