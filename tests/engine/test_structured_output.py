"""Whatever a model prefers, what it writes under a schema is valid: three hundred schemas, logits that are noise."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from server.engine.engine import DecoderEngine
from server.engine.grammar import GrammarCompiler
from server.engine.processors.grammar import GrammarMask
from server.protocol import Failed, Generate, SamplingParams, TokenizerFiles, Tokens
from server.serving.structured import grammar_text
from server.vocabulary import TokenBytes
from tests.engine.fake_runner import FakeRunner
from tests.engine.grammar_driving import start
from tests.fuzz.scale import SCALE
from tests.tiny_tokenizers import tokenizer_files
from tests.varied_schemas import Schema, varied_schema

NUM_SCHEMAS = 100 * SCALE
MAX_NEW_TOKENS = 600
PROMPT_IDS = [5, 6, 7]
SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct" / "tokenizer.json"

formats = jsonschema.FormatChecker(["email", "ipv4", "ipv6", "uuid"])


@formats.checks("date", raises=ValueError)
def is_date(text: Any) -> bool:
    return not isinstance(text, str) or bool(_day(text))


@formats.checks("time")
def is_time(text: Any) -> bool:
    pattern = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
    return not isinstance(text, str) or re.fullmatch(pattern, text, re.IGNORECASE) is not None


@formats.checks("date-time", raises=ValueError)
def is_date_time(text: Any) -> bool:
    return not isinstance(text, str) or (bool(_day(text[:10])) and text[10] in "Tt" and is_time(text[11:]))


def _day(text: str) -> datetime.date:
    # RFC 3339 has a year 0, Python has not; 2000 has its days.
    return datetime.date.fromisoformat(re.sub("^0000", "2000", text))


def schemas() -> list[Schema]:
    """Distinct ones, in the order of their numbers."""
    found: dict[str, Schema] = {}
    for number in count():
        schema = varied_schema(number)
        found.setdefault(json.dumps(schema), schema)
        if len(found) == NUM_SCHEMAS:
            return list(found.values())
    raise AssertionError


class NoiseRunner(FakeRunner):
    """Logits are noise. What closes a text grows likelier with its length, for else the end would never come: quotes
    first of all, then the letters that the schemas' patterns wait for, then brackets."""

    def __init__(self, vocabulary: TokenBytes, vocab_size: int, end_id: int) -> None:
        super().__init__(num_blocks=512, block_size=16)
        self.vocab_size = vocab_size
        self.noise = torch.from_numpy(np.random.default_rng(0).standard_normal(2 * vocab_size, dtype=np.float32)) * 3
        self.slope = torch.zeros(vocab_size)
        for token_id, text in enumerate(vocabulary.all_bytes()):
            for pattern, slope in ((rb'"[\]}]*', 0.5), (rb"[@.]", 0.4), (rb"a|b|ab|z", 0.35), (rb"[\]}]+", 0.3)):
                if re.fullmatch(pattern, text):
                    self.slope[token_id] = slope
        self.slope[end_id] = 0.5

    def logits_of(self, prefix: np.ndarray) -> torch.Tensor:
        place = int.from_bytes(blake2b(prefix.tobytes(), digest_size=8).digest(), "little") % self.vocab_size
        return self.noise[place : place + self.vocab_size] + self.slope * len(prefix)


class Case:
    """A tokenizer, and engines over noise with it. The model's vocabulary is wider than the tokenizer's."""

    def __init__(self, files: TokenizerFiles, num_tokens: int, end_id: int) -> None:
        self.vocab_size = num_tokens + 7
        self.vocabulary = TokenBytes(files, self.vocab_size)
        self.end_id = end_id

    def runner(self) -> NoiseRunner:
        return NoiseRunner(self.vocabulary, self.vocab_size, self.end_id)

    def engine(self) -> DecoderEngine:
        return DecoderEngine(
            self.runner(),
            max_model_len=MAX_NEW_TOKENS + len(PROMPT_IDS),
            max_batch_tokens=64,
            max_running=16,
            prefix_cache=True,
            vocabulary=self.vocabulary,
        )

    def text(self, token_ids: list[int]) -> str:
        return b"".join(map(self.vocabulary.token_bytes, token_ids)).decode()


def tiny() -> Case:
    return Case(tokenizer_files("byte_level"), 402, end_id=1)


def smollm2() -> Case:
    return Case(TokenizerFiles(tokenizer_json=SMOLLM2.read_text()), 49_152, end_id=2)


def check_valid(schema: Schema, text: str) -> None:
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema, format_checker=formats).validate(value)


def outputs(case: Case, wanted: list[Schema], **params: Any) -> Iterator[tuple[Schema, str]]:
    """All texts that an engine answers to requests with the schemas, which it serves side by side."""
    engine = case.engine()
    defaults = {"max_new_tokens": MAX_NEW_TOKENS, "end_token_ids": (case.end_id,)}
    token_ids: dict[tuple[int, int], list[int]] = {}
    for number, schema in enumerate(wanted):
        grammar = grammar_text({"type": "json", "value": schema})
        sampling = SamplingParams(**{**defaults, "seed": number, **params}, grammar=grammar)
        engine.add(Generate(str(number), PROMPT_IDS, sampling))
    while engine.has_work:
        for reply in engine.step():
            assert not isinstance(reply, Failed), (wanted[int(reply.request_id)], reply.message)
            if isinstance(reply, Tokens):
                key = (int(reply.request_id), reply.index)
                token_ids.setdefault(key, []).extend(reply.token_ids)
                if reply.finish_reason is not None:
                    assert reply.finish_reason == "stop", (wanted[key[0]], case.text(token_ids[key]))
                    yield wanted[key[0]], case.text(token_ids[key])


def count_valid(case: Case, wanted: list[Schema], **params: Any) -> int:
    num_valid = 0
    for schema, text in outputs(case, wanted, **params):
        check_valid(schema, text)
        num_valid += 1
    return num_valid


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_schemas_are_valid_schemas() -> None:
    for schema in schemas():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_a_hundred_schemas_are_followed_by_sampling() -> None:
    assert count_valid(tiny(), schemas(), do_sample=True) == NUM_SCHEMAS


def test_a_hundred_schemas_are_followed_greedily() -> None:
    assert count_valid(tiny(), schemas()) == NUM_SCHEMAS


def test_a_hundred_schemas_are_followed_by_every_beam() -> None:
    beams = {"num_beams": 3, "num_return_sequences": 3, "renormalize_logits": True, "early_stopping": True}
    assert count_valid(tiny(), schemas(), **beams) == 3 * NUM_SCHEMAS


def test_several_samples_of_a_request_follow_its_schema_each_in_its_own_way() -> None:
    wanted = list(islice(schemas(), 40))
    answered = list(outputs(tiny(), wanted, do_sample=True, num_return_sequences=4))
    for schema, text in answered:
        check_valid(schema, text)
    assert len(answered) == 160
    assert len({(json.dumps(schema), text) for schema, text in answered}) > 100


@pytest.mark.defaults
@pytest.mark.parametrize(
    "params",
    [
        {"do_sample": True},
        {"num_beams": 2, "num_return_sequences": 2, "renormalize_logits": True, "early_stopping": True},
    ],
    ids=str,
)
def test_schemas_are_followed_with_a_vocabulary_of_full_size(params: dict[str, Any]) -> None:
    wanted = schemas()[::6]
    assert count_valid(smollm2(), wanted, **params) == len(wanted) * params.get("num_return_sequences", 1)


@pytest.mark.defaults
def test_a_hundred_schemas_are_followed_with_a_vocabulary_of_full_size() -> None:
    """By the processor alone, with noise for logits."""
    case = smollm2()
    runner, compiler = case.runner(), GrammarCompiler(case.vocabulary, case.vocab_size)
    for schema in schemas():
        grammar = grammar_text({"type": "json", "value": schema})
        rule = GrammarMask.for_sequence(start(compiler, grammar, end_token_ids=(case.end_id,)))
        assert rule is not None
        output_ids: list[int] = []
        while not output_ids or output_ids[-1] != case.end_id:
            assert len(output_ids) < MAX_NEW_TOKENS, (schema, case.text(output_ids))
            logits_SV = runner.logits_of(np.array([*output_ids, 0])[:, None]).unsqueeze(0)
            GrammarMask.apply(logits_SV, [0], [rule])
            output_ids.append(int(logits_SV.argmax()))
            rule.accept(output_ids[-1])
        check_valid(schema, case.text(output_ids))
