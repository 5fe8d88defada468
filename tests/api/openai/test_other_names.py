"""Options that have several names: each name is checked and honoured in every body, and errors use the client's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.openai.fronts import CHAT, COMPLETIONS, HELLO, Front, fronted

HEADER = "x-ignored-fields"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "Hello"}),
    (CHAT, HELLO),
    ("/v1/responses", {"input": "Hello"}),
    ("/v1/messages", {"max_new_tokens": 4, **HELLO}),
]
EVERY_BODY = pytest.mark.parametrize(("path", "body"), BODIES)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with fronted() as front:
        yield front


@EVERY_BODY
@pytest.mark.parametrize("value", ["a", [], [5], True, {"5": False}, 0.5])
@pytest.mark.parametrize("name", ["max_output_tokens", "max_completion_tokens", "max_tokens"])
def test_every_name_of_a_number_is_refused_with_another_type(
    front: Front, path: str, body: dict[str, Any], name: str, value: Any
) -> None:
    error = front.refused(path, **{**body, name: value})
    assert (error.param, error.code) == (name, "invalid_value") and "an integer" in error.message


@EVERY_BODY
@pytest.mark.parametrize("value", [[True], [None], {"a": "b"}, 0.5])
def test_stop_sequences_are_refused_with_another_type(
    front: Front, path: str, body: dict[str, Any], value: Any
) -> None:
    error = front.refused(path, **body, stop_sequences=value)
    assert error.param is not None and error.param.startswith("stop_sequences") and error.code == "invalid_value"


@EVERY_BODY
@pytest.mark.parametrize("stop", ["mill", ["mill"]])
def test_equal_values_of_two_names_are_taken(front: Front, path: str, body: dict[str, Any], stop: Any) -> None:
    response = front.send(path, **body, stop=stop, stop_sequences=["mill"])
    assert response.status_code == 200 and HEADER not in response.headers


@EVERY_BODY
@pytest.mark.parametrize("name", ["max_output_tokens", "max_completion_tokens", "max_tokens"])
def test_every_name_of_a_number_is_honoured_and_not_called_ignored(
    front: Front, path: str, body: dict[str, Any], name: str
) -> None:
    response = front.send(path, **{**body, "max_new_tokens": 3, name: 3})
    assert front.command.params.max_new_tokens == 3 and HEADER not in response.headers


@EVERY_BODY
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 6}),
        ({"max_completion_tokens": 5}, {"max_output_tokens": 4}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 6}),
        ({"min_tokens": 2}, {"min_new_tokens": 3}),
        ({"truncate_prompt_tokens": 2}, {"truncate": 3}),
        ({"stop_sequences": ["a"]}, {"stop": ["b"]}),
    ],
)
def test_two_names_with_different_values_are_both_named(
    front: Front, path: str, body: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> None:
    ((one, _),), ((other, _),) = first.items(), second.items()
    error = front.refused(path, **{**body, **first, **second})
    assert f"{one} and {other} cannot be combined" in error.message and error.param == one


@pytest.mark.parametrize("name", ["n", "num_return_sequences"])
def test_a_number_of_outputs_is_refused_under_the_name_that_was_sent(front: Front, name: str) -> None:
    assert front.refused(CHAT, **HELLO, **{name: 1000}).param == name


def test_two_different_numbers_of_outputs_are_both_named(front: Front) -> None:
    error = front.refused(CHAT, **HELLO, n=2, num_return_sequences=3)
    assert "num_return_sequences and n cannot be combined" in error.message
