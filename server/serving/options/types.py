"""The types of options: how JSON's lists become tuples, and where one value stands for a list of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict

from server.serving.strict_model import STOP_AT_FIRST_ERROR, StrictModel, one_error

NOT_EMPTY = Field(json_schema_extra={"minItems": 1})
"""For the documentation only."""
# JSON has lists.
TUPLE = Strict(False)


def _listed(value: Any) -> Any:
    """One text or number as a list of it."""
    return [value] if isinstance(value, str | int) else value


Texts = Annotated[tuple[str, ...], TUPLE, STOP_AT_FIRST_ERROR]
TextsOrOne = Annotated[
    Texts,
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], NOT_EMPTY]),
    one_error("a string or a list of strings"),
]
Ids = Annotated[tuple[int, ...], TUPLE, STOP_AT_FIRST_ERROR]
IdsOrOne = Annotated[
    Ids,
    BeforeValidator(_listed, json_schema_input_type=int | list[int]),
    one_error("a token id or a list of token ids"),
]
IdLists = Annotated[tuple[Ids, ...], TUPLE, STOP_AT_FIRST_ERROR]
Bias = Annotated[float | bool | Literal["-inf"], one_error('a number, false or "-inf"')]
"""An amount added to a logit; false and "-inf" ban."""
TokenBias = Annotated[tuple[int, Bias], TUPLE]
LogitBias = Annotated[
    dict[str, Bias] | Annotated[tuple[TokenBias, ...], TUPLE, STOP_AT_FIRST_ERROR],
    one_error("an object of token ids and amounts, or a list of [id, amount]"),
]
SequenceBias = Annotated[tuple[Ids, Bias], TUPLE]
SequenceBiases = Annotated[tuple[SequenceBias, ...], TUPLE, STOP_AT_FIRST_ERROR]
StartAndFactor = Annotated[tuple[int, float], TUPLE]
Scope = Annotated[
    Literal["prompt", "output", "both"] | int, one_error('"prompt", "output", "both" or a number of last tokens')
]
Early = Annotated[bool | Literal["never"], one_error('true, false or "never"')]


class Penalty(StrictModel):
    """One entry of ``penalties``."""

    phrase: str | None = None
    """Text of the client's own. Each entry has a phrase or a topic."""
    topic: str | None = None
    """The name of a topic of this server."""
    strength: Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 100})]


PenaltyList = Annotated[tuple[Penalty, ...], TUPLE, STOP_AT_FIRST_ERROR]


class AdapterWeight(StrictModel):
    """One entry of ``adapters``."""

    name: str
    """A served adapter of the request's model."""
    weight: Annotated[float, Field(json_schema_extra={"minimum": -10, "maximum": 10})] = 1.0


AdapterWeights = Annotated[tuple[AdapterWeight, ...], TUPLE, STOP_AT_FIRST_ERROR]


class RankBy(StrictModel):
    """What ranks the samples of ``best_of``."""

    model: str
    label: str
