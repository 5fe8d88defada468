"""The whole front over translating models whose translations a test writes down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from server.api.app import build_app
from server.config import ModelConfig, ServeConfig
from server.languages import Language, Languages, Pair
from server.protocol import Generate, Tokens
from tests.api.scripted import (
    END_ID,
    MAX_MODEL_LEN,
    TOKENIZER,
    VOCAB_SIZE,
    FakeSupervisor,
    Script,
    ScriptedWorker,
    Step,
    ready,
)


def language(code: str, name: str, short_code: str, token_id: int) -> Language:
    """As NLLB has them."""
    return Language(
        code=code,
        name=name,
        short_codes=[short_code],
        source_prefix_ids=[token_id],
        source_suffix_ids=[END_ID],
        forced_bos_id=token_id,
    )


ENGLISH = language("eng_Latn", "English", "en", 60)
GERMAN = language("deu_Latn", "German", "de", 61)
FRENCH = language("fra_Latn", "French", "fr", 62)
MANY = Languages(languages=[ENGLISH, GERMAN, FRENCH])
ONE_WAY = Languages(
    languages=[
        Language(code="en", name="English", is_target=False),
        Language(code="pt", name="Portuguese", is_source=False),
    ],
    default_source="en",
    default_target="pt",
)
FROM_MANY = Languages(languages=[Language(code="en", name="English", is_source=False)], default_target="en")
"""As opus-mt-mul-en has them."""
TAGGED = Languages(
    languages=[
        Language(code="fra", name="French", is_source=False, target_prefix_ids=[60]),
        Language(code="ron", name="Romanian", is_source=False, target_prefix_ids=[61]),
    ],
    is_target_in_text=True,
)
"""As OPUS models for several targets have them."""
IN_WORDS = Languages(
    languages=[Language(code="en", name="English"), Language(code="de", name="German", is_source=False)],
    pairs=[Pair(source="en", target="de", prefix="translate English to German: ")],
    default_source="en",
    default_target="de",
)


def echoes(command: Generate) -> Iterator[Step]:
    """Writes the text that it read in capitals; of several outputs each has its number. Long ones take longer."""
    text = TOKENIZER.decode([id_ for id_ in command.source_ids if id_ not in (60, 61, 62)]).upper()
    for number in range(command.params.num_return_sequences):
        shown = text if command.params.num_return_sequences == 1 else f"{text} {number}"
        ids = [*TOKENIZER.encode(shown).ids, END_ID][: command.params.max_new_tokens]
        for i, token_id in enumerate(ids, start=1):
            finish = "stop" if token_id == END_ID else "length" if i == len(ids) else None
            yield Tokens(command.request_id, [token_id], finish, [-0.5], index=number)
            yield 0.0


def translator(name: str, languages: Languages | None, script: Script = echoes, **facts: Any) -> ScriptedWorker:
    worker = ScriptedWorker(
        script,
        ready(
            task="seq2seq",
            max_source_len=MAX_MODEL_LEN,
            source_vocab_size=VOCAB_SIZE,
            start_ids=[0],
            languages=languages,
            **facts,
        ),
    )
    worker.model = ModelConfig(name=name, path="nowhere")
    return worker


@contextmanager
def serving(worker: ScriptedWorker, **settings: Any) -> Iterator[TestClient]:
    """One event loop for all requests: the sandbox's processes stay until the end."""
    with client_of(worker, **settings) as client:
        yield client
        assert client.portal is not None
        client.portal.call(client.app.front.registry.services.close)  # type: ignore[attr-defined]


def client_of(*workers: ScriptedWorker, **settings: Any) -> TestClient:
    config = ServeConfig(models=tuple(worker.model for worker in workers), **settings)
    app = build_app(config, FakeSupervisor(config, {worker.model.name: worker for worker in workers}))  # type: ignore[arg-type]
    app.front.registry.load()
    app.front.lifecycle.is_loaded = True
    return TestClient(app)
