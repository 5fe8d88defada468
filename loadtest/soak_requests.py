"""Requests of every route for every task that a server has, sound ones and refused ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.tasks import TASKS

TEXT = "The old mill by the river grinds the corn of Maria Gonzalez from Springfield. "
MESSAGES = [{"role": "user", "content": TEXT}]
FEW = {"max_new_tokens": 24, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


@dataclass(frozen=True)
class Request:
    """A body of None is a GET."""

    path: str
    body: dict[str, Any] | None = None
    status: int = 200


READS = [Request(path) for path in ("/livez", "/health", "/info", "/metrics", "/v1/models", "/version", "/load",
                                    "/languages", "/templates", "/tokenizer_info", "/openapi.json")]  # fmt: skip
OF_ANY = [
    *READS,
    Request("/tokenize", {"prompt": TEXT, "return_token_strs": True}),
    Request("/detokenize", {"tokens": [5, 6, 7]}),
    Request("/detokenize", {"tokens": [-1]}, 422),
    Request("/v1/chat/completions", {"messages": "none"}, 400),
    Request("/generate", {"inputs": TEXT, "parameters": {"top_p": 2}}, 422),
    Request("/nothing", {}, 404),
]
BY_TASK: dict[str, list[Request]] = {
    "generate": [
        Request("/generate", {"inputs": TEXT, "stream": True, "parameters": FEW}),
        Request("/generate", {"inputs": TEXT * 8, "stream": True, "parameters": {**FEW, "max_new_tokens": 100}}),
        Request("/generate", {"inputs": [TEXT, TEXT[:20]], "parameters": {**FEW, "details": True, "top_n_tokens": 3}}),
        Request("/generate", {"inputs": TEXT, "parameters": {**FEW, "num_beams": 3}}),
        Request("/generate", {"inputs": TEXT, "parameters": {**FEW, "num_return_sequences": 3, "do_sample": True}}),
        Request("/generate_stream", {"inputs": TEXT, "parameters": FEW}),
        Request("/", {"inputs": TEXT, "parameters": FEW}),
        Request("/v1/completions", {"prompt": [TEXT, TEXT], "max_tokens": 16, "logprobs": 2}),
        Request("/v1/completions", {"prompt": TEXT, "max_tokens": 16, "stream": True}),
    ],
    "seq2seq": [
        Request("/translate", {"inputs": TEXT, "parameters": FEW, "stream": True}),
        Request("/translate", {"inputs": TEXT * 4, "parameters": FEW, "split": "sentences"}),
        Request("/summarize", {"inputs": [TEXT, TEXT * 4], "parameters": {**FEW, "num_beams": 3}}),
    ],
    "classify": [
        Request("/classify", {"inputs": [TEXT] * 8}),
        Request("/v1/classify", {"input": [TEXT]}),
        Request("/predict", {"inputs": TEXT}),
    ],
    "ner": [Request("/ner", {"inputs": [TEXT * 30, TEXT]})],
    "fill-mask": [],
    "question-answering": [
        Request(
            "/question-answering", {"inputs": {"question": "Who?", "context": TEXT * 30}, "parameters": {"top_k": 3}}
        ),
    ],
    "embed": [
        Request("/embed", {"inputs": [TEXT] * 4}),
        Request("/v1/embeddings", {"input": [TEXT], "encoding_format": "base64"}),
        Request("/similarity", {"inputs": {"source_sentence": TEXT, "sentences": [TEXT, "x"]}}),
    ],
}
"""Of other tasks the example of the task's route."""

OF_CHATS = [
    Request("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 16}),
    Request("/chat/completions", {"messages": MESSAGES, "max_tokens": 32, "stream": True}),
    Request("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 64, "guided_json": SCHEMA}),
    Request("/v1/responses", {"input": TEXT, "max_output_tokens": 16, "stream": True}),
    Request("/v1/messages", {"messages": MESSAGES, "max_tokens": 16, "stream": True}),
    Request("/v1/messages/count_tokens", {"messages": MESSAGES}),
]


def requests_for(info: Mapping[str, Any]) -> list[Request]:
    """What the server of this ``/info`` can be asked."""
    examples = {task: [Request(TASKS[task].route, dict(TASKS[task].example))] for task in info["tasks"]}
    found = [*OF_ANY, *(request for task in info["tasks"] for request in BY_TASK.get(task, examples[task]))]
    generators = [model for model in info["models"] if model.get("task") == "generate"]
    if generators and generators[0]["has_chat_template"]:
        found += OF_CHATS
    for model in info["models"]:
        found += _of_model(model)
    return found


def _of_model(model: Mapping[str, Any]) -> Iterator[Request]:
    """What depends on a model's labels or tokens."""
    name = {"model": model["name"]}
    if model.get("relevance_label") is not None:
        yield Request("/rerank", {"query": TEXT, "texts": [TEXT, "x"], **name})
        yield Request("/v1/rerank", {"query": TEXT, "documents": [TEXT, "x"], **name})
        yield Request("/v2/rerank", {"query": TEXT, "documents": [TEXT, "x"], **name})
        yield Request("/score", {"text_1": TEXT, "text_2": [TEXT, "x"], **name})
        yield Request("/v1/score", {"queries": TEXT, "documents": [TEXT, "x"], **name})
    if model.get("entailment_label") is not None:
        labels = {"candidate_labels": ["mill", "river"]}
        yield Request("/zero-shot-classification", {"inputs": TEXT, "parameters": labels, **name})
    if model.get("mask_token") is not None:
        yield Request("/fill-mask", {"inputs": f"The {model['mask_token']} by the river", **name})
