"""The ways of vLLM's routes that are not below /v1, and of Cohere's."""

from __future__ import annotations

from server.api.http.dialect import Dialect


class Vllm(Dialect):
    names_unknown_fields = True


VLLM = Vllm()
