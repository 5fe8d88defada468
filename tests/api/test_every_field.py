"""No field of a body disappears, in any dialect: each one changes what happens, or is refused by name.

Every field that a body's class names, and every one of its ``parameters``, is set to other values. One of them must
change the answer or what the worker is asked for, or be refused by the field's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from server.api.app import ROUTERS
from tests.api.embed_app import embed_worker
from tests.api.field_walk import FUNCTION, TOOLS, USER, VALUES, Walk, models, says, scripted_worker, values_of
from tests.api.translators import MANY, translator
from tests.encoder_app import client_of, tiny_worker
from tests.option_examples import EXAMPLES

LONG = "Alice met Bob. " + "the old stone bridge in Chicago " * 40
EN_DE = {"src_lang": "en", "tgt_lang": "de"}
NLI = {"candidate_labels": ["a letter", "a journey"]}

BASES: dict[str, list[dict[str, Any]]] = {
    "GenerateRequest": [{"inputs": "Hello mill"}, {"messages": USER}],
    "TranslateRequest": [
        {"inputs": "Hello mill", "parameters": EN_DE},
        {"inputs": "One. Two.", "parameters": EN_DE},
        {"inputs": "Hello mill", "parameters": EN_DE, "stream": True},
        {"q": "Hello mill", "source": "en", "target": "de"},
    ],
    "SummarizeRequest": [
        {"inputs": "Hello mill", "model": "many"},
        {"inputs": "One. Two."},
        {"inputs": "Hello mill", "stream": True},
    ],
    "ClassifyRequest": [{"inputs": ["Alice met Bob"]}, {"input": "Alice met Bob"}, {}],
    "NerRequest": [{"inputs": LONG}, {"inputs": "Alice met Bob in Chicago"}, {}],
    "FillMaskRequest": [{"inputs": "Alice met [MASK]"}],
    "QuestionAnsweringRequest": [
        {"inputs": {"question": "Who met Bob?", "context": LONG}},
        {"inputs": {"question": "Who met Bob?", "context": "Alice met Bob"}},
        # With this many answers the empty one is always among them.
        {"inputs": {"question": "Who met Bob?", "context": "Alice met Bob"}, "parameters": {"top_k": 50}},
    ],
    "EmbedBody": [{"inputs": LONG}, {"inputs": "Alice"}, {"inputs": LONG, "truncate": True}],
    "SimilarityBody": [
        {"inputs": {"source_sentence": "Alice", "sentences": [LONG]}},
        {"inputs": {"source_sentence": "Alice", "sentences": [LONG]}, "parameters": {"truncate": True}},
    ],
    "PredictBody": [{"inputs": LONG}, {"inputs": "Alice"}, {"inputs": LONG, "truncate": True}],
    "ZeroShotRequest": [{"inputs": "Alice", "parameters": NLI}, {"inputs": LONG, "parameters": NLI}],
    "RerankBody": [
        *({"query": "Who?", name: ["Alice", text]} for name in ("texts", "documents") for text in ("Bob", LONG)),
        {"query": "Who?", "documents": ["Alice", LONG], "truncate": True},
        {"query": "Who?", "documents": ["Alice", LONG], "truncate_prompt_tokens": 9},
    ],
    "ScoreBody": [
        {"text_1": "Who?", "text_2": "Bob"},
        {"queries": "Who?", "documents": LONG},
        {"queries": "Who?", "documents": LONG, "truncate_prompt_tokens": 9},
    ],
    "TokenizeBody": [{"prompt": "Hello mill"}, {"messages": USER}, {}, {"prompt": "Hello", "model": "nli"}],
    "DetokenizeBody": [{"tokens": [60, 61]}],
    "EmbeddingsBody": [{"input": LONG}, {"input": "Alice"}, {"input": LONG, "truncate_prompt_tokens": 9}],
    "ClassifyBody": [{"input": LONG}, {"input": "Alice"}, {"input": LONG, "truncate_prompt_tokens": 9}],
    "ChatBody": [
        {"messages": USER},
        {"messages": USER, "tools": TOOLS},
        {"messages": USER, "logprobs": True},
        {"messages": [*USER, {"role": "assistant", "content": "The"}]},
        {"messages": USER, "stream": True},
        {"messages": USER, "stop": ["runs"]},
    ],
    "CompletionBody": [
        {"prompt": "Hello mill"},
        {"prompt": "Hello", "logprobs": 1},
        {"prompt": "Hello", "stream": True},
        {"prompt": "Hello", "stop": ["runs"]},
    ],
    "ResponsesBody": [
        {"input": "Hello"},
        {"input": "Hello", "stop": ["runs"]},
        {"input": "Hello", "tools": [{"type": "function", **FUNCTION}]},
    ],
    "MessagesBody": [
        {"messages": USER, "max_tokens": 90},
        {"messages": USER, "max_tokens": 90, "stop": ["runs"]},
        {"messages": USER, "max_tokens": 90, "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]},
    ],
}
"""Bodies to which a field is added, by the body's class; a field that goes with one of them may not go with another."""


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    encoders = [
        tiny_worker("nli", "bert", "classify", labels=("contradiction", "neutral", "entailment")),
        tiny_worker("ranker", "bert", "classify", labels=("relevance",)),
        tiny_worker("names", "bert", "ner"),
        tiny_worker("masks", "bert", "fill-mask"),
        tiny_worker("answers", "bert", "question-answering"),
        embed_worker(prompts={"query": "question: "}),
    ]
    worker = scripted_worker()
    served: Any = worker
    translating: Any = translator("many", MANY, says)
    with client_of(served, translating, *encoders) as client:
        yield Walk(client, worker, translating)
        assert client.portal is not None
        client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


def fields() -> Iterator[Any]:
    """Every field of every route's body, and of the object ``parameters`` in it."""
    seen = set()
    for _, router in ROUTERS:
        for route in router.routes:
            body_field = getattr(route, "body_field", None)
            if body_field is None or (body := body_field.field_info.annotation).__name__ in seen:
                continue
            seen.add(body.__name__)
            for name, info in body.model_fields.items():
                (parameters, *_) = [*models(info.annotation), None] if name == "parameters" else [None]
                inner = parameters.model_fields if parameters is not None else {}
                places = (
                    [(name, info.annotation)]
                    if not inner
                    else [(f"{name}.{n}", i.annotation) for n, i in inner.items()]
                )
                for place, annotation in places:
                    yield pytest.param(route.path, body, place, annotation, id=f"{body.__name__}-{place}")


def with_field(base: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = place.partition(".")
    return {**base, outer: {**base.get(outer, {}), inner: value}} if dot else {**base, outer: value}


def pairs(body: type[BaseModel], place: str, annotation: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A body without the field, and one with it."""
    name = place.rpartition(".")[2]
    if body.__name__ not in TEXT_BODIES:
        for base in BASES[body.__name__]:
            for value in values_of(name, annotation):
                yield base, with_field(base, place, value)
        return
    is_native = body.__name__ in NATIVE
    examples = {} if name in VALUES else EXAMPLES.get(name, {})
    # On other routes what is told has fields of its own.
    needed = {k: v for k, v in {"seed": 5, **examples}.items() if k != name and (is_native or k != "details")}
    if body.__name__ == "MessagesBody" and "max_new_tokens" in needed:
        needed["max_tokens"] = needed.pop("max_new_tokens")
    for base in BASES[body.__name__]:
        for other, value in needed.items():
            base = with_field(base, f"parameters.{other}" if is_native else other, value)
        for value in [examples[name]] if name in examples else values_of(name, annotation):
            yield base, with_field(base, place, value)


NATIVE = {"GenerateRequest", "TranslateRequest", "SummarizeRequest"}
TEXT_BODIES = {*NATIVE, "ChatBody", "CompletionBody", "ResponsesBody", "MessagesBody"}


@pytest.mark.parametrize(("path", "body", "place", "annotation"), list(fields()))
def test_every_field_has_an_effect_or_is_refused_by_name(
    walk: Walk, path: str, body: type[BaseModel], place: str, annotation: Any
) -> None:
    name = body.model_fields[place].alias or place if place in body.model_fields else place
    for without, with_it in pairs(body, name, annotation):
        plain, changed = walk.outcome(path, without), walk.outcome(path, with_it)
        if changed.refused is not None and plain.status == 200:
            assert changed.refused.partition(".")[0] in with_it, (with_it, changed)
        if changed != plain:
            return
    raise AssertionError(f"nothing reads {name}")
