"""OpenAI's ways, which vLLM's routes below /v1 share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.http.dialect import Dialect, written
from server.api.http.sse import data_event


class OpenAI(Dialect):
    names_unknown_fields = True
    status_of_invalid = 400
    has_status_routes = False

    def error_event(self, body: Mapping[str, Any]) -> bytes:
        return data_event(written(body))


class Responses(OpenAI):
    """The newer routes name their events."""

    error_event = Dialect.error_event


OPENAI = OpenAI()
RESPONSES = Responses()
