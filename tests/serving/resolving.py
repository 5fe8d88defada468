"""A request of one prompt, from its options to complete parameters, as `server.serving.prompts` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.protocol import Ready, SamplingParams
from server.serving.options.merge import check, merge
from server.serving.options.reading import from_mapping, model_defaults
from server.serving.options.resolve import Resolved, prompt_field, resolve
from tests.api.scripted import TOKENIZER


@dataclass
class One:
    """What holds for the prompt."""

    params: SamplingParams
    resolved: Resolved

    @property
    def origins(self) -> Mapping[str, Any]:
        return self.resolved.origins

    def parameters(self) -> dict[str, dict[str, Any]]:
        return self.resolved.parameters(self.params)


def checked(request: Mapping[str, Any], model: Ready, body: Mapping[str, Any] | None = None) -> None:
    """Raise as for a request before its template is rendered, if it has one."""
    options = from_mapping(request)
    check(options, model, body or {})
    if "template" not in (body or {}):
        merge(options, from_mapping({}), model_defaults(model)[0], model, body)


def resolved(
    request: Mapping[str, Any],
    model: Ready,
    *,
    template: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
    num_prompt_tokens: int = 5,
    topics: Mapping[str, Sequence[str]] | None = None,
    grammar: str | None = None,
) -> One:
    checked(request, model, {"template": "t"} if template is not None and body is None else body)
    merged = merge(from_mapping(request), from_mapping(template or {}), model_defaults(model)[0], model, body)
    found = resolve(
        merged,
        model,
        default_max_new_tokens=16,
        seed=3,
        tokenizer=TOKENIZER,
        topics=topics or {},
        grammar=grammar,
        source=prompt_field(body or {}),
    )
    return One(found.params(num_prompt_tokens), found)
