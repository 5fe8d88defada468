"""Requests for several outputs to a front whose model says what a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from starlette.testclient import TestClient

from server.protocol import Generate, Tokens
from tests.api.scripted import END_ID, TOKENIZER, Script, Step, front

TEXTS = ["The mill runs.", "The river", "你好 😀 mill", "The miller counts the sacks"]


def says_each(*texts: str, logprobs: list[float] | None = None) -> Script:
    """A model whose output ``i`` is text ``i``; all grow by a token a step. ``logprobs``: of each token of the text."""

    def script(command: Generate) -> Iterator[Step]:
        outputs = [[*TOKENIZER.encode(text).ids, END_ID] for text in texts[: command.params.num_return_sequences]]
        assert len(outputs) == command.params.num_return_sequences
        for step in range(max(map(len, outputs))):
            yield [
                Tokens(
                    command.request_id,
                    [ids[step]],
                    "stop" if step == len(ids) - 1 else None,
                    [logprobs[i]] if logprobs and command.params.logprobs else None,
                    1 if step == 0 else None,
                    index=i,
                )
                for i, ids in enumerate(outputs)
                if step < len(ids)
            ]

    return script


def client_of(script: Script, **settings: Any) -> TestClient:
    return TestClient(front(script, **settings))


def post(
    client: TestClient, inputs: Any = "Hello", *, status: int = 200, stream: bool = False, **parameters: Any
) -> Any:
    response = client.post("/generate", json={"inputs": inputs, "parameters": parameters, "stream": stream})
    assert response.status_code == status, response.text
    if stream and status == 200:
        events = response.text.removesuffix("\n\n").split("\n\n")
        return [json.loads(event.removeprefix("data: ")) for event in events]
    return response.json() if status == 200 else response.json()["error"]


def command_of(client: TestClient) -> Generate:
    command: Generate = client.app.state.worker.commands[-1]  # type: ignore[attr-defined]
    return command
