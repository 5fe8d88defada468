"""What the encoder routes promise of every request: run together, bounded, and ended with its client."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from starlette.requests import ClientDisconnect

from server.api.http.disconnect import until_disconnect
from server.availability_errors import QueueFull
from server.config import ServeConfig
from server.errors import NumericalError
from server.length_errors import InputTooLong
from server.protocol import Encode, Scores
from server.serving.admission import Admission
from server.serving.classifier import ClassifyOptions, ServedClassifier, TextPair
from server.serving.record import RequestRecord
from server.serving.tagger import ServedTagger, TagOptions
from tests.api.shell import listening
from tests.encoder_app import EngineWorker, client_of, tiny_worker
from tests.tiny_encoders import MASK, TEXTS

PAIRS = [TextPair(text) for text in TEXTS]


def record() -> RequestRecord:
    return RequestRecord(request_id="r", public_id="r", route="/classify")


def served(worker: EngineWorker, cls: Any = ServedClassifier, **limits: int) -> tuple[Any, Admission]:
    limits = {"max_requests": 8, "max_tokens": 10_000, **limits}
    admission = Admission(worker.model.name, limits["max_requests"], limits["max_tokens"])
    config = ServeConfig(models=(worker.model,))
    return cls(config, worker.model, worker.ready, worker, admission), admission


def test_the_inputs_of_one_request_share_steps() -> None:
    worker = tiny_worker("mood", "bert", "classify")
    classifier, admission = served(worker)
    noted = record()
    asyncio.run(classifier.classify(PAIRS, ClassifyOptions(), noted))
    assert max(worker.batch_sizes) > 2
    assert noted.prompt_tokens == sum(len(classifier.tokenizer.encode(text).ids) for text in TEXTS)
    assert noted.queue_s is not None
    assert admission.num_requests == admission.num_tokens == 0


def test_the_windows_of_one_document_share_steps_and_count_as_one_request() -> None:
    worker = tiny_worker("names", "bert", "ner")
    tagger, admission = served(worker, ServedTagger, max_requests=1)
    asyncio.run(tagger.tag([" ".join(TEXTS * 5)], TagOptions(), record()))
    assert max(worker.batch_sizes) > 2
    assert admission.num_requests == 0


def test_a_client_that_leaves_takes_its_work_with_it() -> None:
    worker = tiny_worker("mood", "bert", "classify")
    worker._step_while_needed = _never  # type: ignore[method-assign]
    classifier, admission = served(worker)

    async def leave() -> None:
        request = LeavingRequest()
        with pytest.raises(ClientDisconnect):
            await until_disconnect(request, classifier.classify(PAIRS, ClassifyOptions(), record()))  # type: ignore[arg-type]

    asyncio.run(leave())
    assert len(worker.aborted) == len(PAIRS)
    assert not worker.engine.has_work
    assert admission.num_requests == admission.num_tokens == 0


class LeavingRequest:
    """A client that waits a little and hangs up."""

    async def receive(self) -> dict[str, str]:
        await asyncio.sleep(0.2)
        return {"type": "http.disconnect"}


async def _never() -> None:
    await asyncio.Event().wait()


def test_the_failure_of_one_input_ends_the_others() -> None:
    worker = tiny_worker("mood", "bert", "classify")
    ended: list[str] = []

    async def encode(command: Encode, on_start: Any) -> Scores:
        if len(command.token_ids) == 3:
            raise NumericalError("not finite")
        try:
            return await asyncio.Event().wait()  # type: ignore[return-value]
        finally:
            ended.append(command.request_id)

    worker.encode = encode  # type: ignore[method-assign]
    classifier, admission = served(worker)
    with pytest.raises(NumericalError):
        asyncio.run(classifier.classify(PAIRS, ClassifyOptions(), record()))
    assert len(ended) == len(PAIRS) - 1
    assert admission.num_requests == 0


def test_a_full_queue_refuses_before_anything_is_tokenised() -> None:
    worker = tiny_worker("mood", "bert", "classify")
    classifier, admission = served(worker, max_requests=1)
    classifier.tokenizer = None
    with admission.admit(1), pytest.raises(QueueFull) as refused:
        asyncio.run(classifier.classify(PAIRS, ClassifyOptions(), record()))
    assert refused.value.retry_after_s is not None


def test_one_input_that_is_too_long_starts_none_of_its_mates() -> None:
    worker = tiny_worker("mood", "bert", "classify")
    classifier, _ = served(worker)
    with pytest.raises(InputTooLong):
        asyncio.run(classifier.classify([*PAIRS, TextPair("bob " * 99)], ClassifyOptions(), record()))
    assert worker.batch_sizes == []


def test_hugging_faces_client_reads_every_answer() -> None:
    workers = [
        tiny_worker("mood", "bert", "classify", labels=("bad", "good")),
        tiny_worker("names", "bert", "ner"),
        tiny_worker("words", "bert", "fill-mask"),
        tiny_worker("answers", "bert", "question-answering"),
    ]
    app = client_of(*workers).app
    with listening(app) as port:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{port}"
        labels = InferenceClient(f"{url}/classify").text_classification(TEXTS[0], top_k=2, function_to_apply="softmax")
        entities = InferenceClient(f"{url}/ner").token_classification(TEXTS[0])
        grouped = InferenceClient(f"{url}/ner").token_classification(
            TEXTS[0], aggregation_strategy="first", ignore_labels=["O"], stride=4
        )
        tokens = InferenceClient(f"{url}/ner").token_classification(TEXTS[0], aggregation_strategy="none")
        fillings = InferenceClient(f"{url}/fill-mask").fill_mask(f"I am {MASK}.", targets=["maria", "bob"], top_k=2)
        asked = InferenceClient(f"{url}/question-answering")
        answer = asked.question_answering("Who?", TEXTS[0])
        answers = asked.question_answering(
            "Who?", TEXTS[0], top_k=2, doc_stride=4, max_answer_len=5, max_seq_len=40, max_question_len=3,
            handle_impossible_answer=True, align_to_words=False,
        )  # fmt: skip
    assert TEXTS[0][answer.start : answer.end] == answer.answer and len(answers) == 2
    assert all(TEXTS[0][each.start : each.end] == each.answer for each in answers)
    assert {label.label for label in labels} == {"bad", "good"}
    assert sum(label.score for label in labels) == pytest.approx(1)
    assert entities and all(TEXTS[0][entity.start : entity.end] == entity.word for entity in entities)
    assert all(entity.entity_group in ("PER", "LOC", "ORG") for entity in [*entities, *grouped])
    assert all(token.entity in ("B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG") for token in tokens)
    assert {filling.token_str for filling in fillings} == {"maria", "bob"}


def test_every_option_of_a_body_is_read() -> None:
    from server.api.dialects.hf import classify, fill_mask, ner
    from server.api.dialects.hf.schemas import ClassifyParameters, FillMaskParameters, NerParameters

    for module, schema in ((classify, ClassifyParameters), (ner, NerParameters), (fill_mask, FillMaskParameters)):
        base = module._options(schema())
        changed = {
            "function_to_apply": "none", "top_k": 3, "threshold": 0.25, "truncate": True, "aggregation_strategy": "max",
            "ignore_labels": ["X"], "stride": 7, "targets": "word",
        }  # fmt: skip
        for name in schema.model_fields:
            options = module._options(schema(**{name: changed[name]}))
            assert dataclasses.asdict(options) != dataclasses.asdict(base), name
