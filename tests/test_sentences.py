"""What a client sent is text in a message, and is never taken for a field."""

from __future__ import annotations

import pytest

from server.errors import ConflictingParameters, InvalidParameter, WithoutEffect
from server.length_errors import PromptTooLong
from server.sentences import Reader, echo, listed, sentence

NAMES = {"details": "logprobs", "inputs": "prompt", "grammar.value": "response_format"}


def test_renames_fields_and_leaves_values_as_they_came() -> None:
    text = sentence("{details} is {value}, not {other}", value="details", other=["details"])
    assert text.written(NAMES) == "logprobs is details, not ['details']"


def test_renames_the_first_step_of_a_path_and_whole_paths() -> None:
    text = sentence("{inputs.0.text}, {grammar.value}, {grammar.type}")
    assert text.written(NAMES) == "prompt.0.text, response_format, grammar.type"


def test_puts_one_sentence_into_another_with_its_fields() -> None:
    assert sentence("{a}: {rest}", rest=sentence("set {details}")).written(NAMES) == "a: set logprobs"
    assert sentence("{names}.", names=listed(["details", "seed"])).written(NAMES) == "logprobs, seed."


def test_braces_of_a_client_are_text() -> None:
    error = InvalidParameter("stop", "{inputs}", "must not be {inputs}")
    error.reader = Reader(NAMES)
    assert error.message == 'stop is "{inputs}": it must not be {inputs}.'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        ([False, {"a": None}], '[false, {"a": null}]'),
        ("ä", '"ä"'),
        ("你好", '"你好"'),
        ("a\u202eb\ud800\n", '"a\\u202eb\\ud800\\n"'),
        ("你" * 100, '"' + "你" * 60 + "..."),
        (b"a", "b'a'"),
    ],
)
def test_echoes_values_as_json(value: object, shown: str) -> None:
    assert echo(value) == shown


def test_a_field_that_nobody_sent_is_not_blamed() -> None:
    assert "do_sample" not in ConflictingParameters("n", "do_sample", "they are the same", is_second_sent=False).message
    assert "template" not in WithoutEffect("variables", "template", "add one", is_second_sent=False).message


def test_an_error_is_written_when_it_is_read() -> None:
    error = PromptTooLong(9, 8, sentence("Set {truncate}."))
    error.reader = Reader({"inputs": "messages", "truncate": "truncate_prompt_tokens"})
    assert error.param == "messages" and error.message.endswith("Set truncate_prompt_tokens.")
    assert str(error) == error.message


def test_a_parameter_is_named_by_its_place_in_the_body() -> None:
    error = InvalidParameter("top_k", -1, "must be at least 0")
    error.reader = Reader(parameters=["top_k"])
    assert error.param == "parameters.top_k" and error.message.startswith("top_k is -1")
