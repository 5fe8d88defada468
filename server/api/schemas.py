"""The bodies of requests: names and types. Ranges, and what fits a model, are checked where the model is known."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """Base of all bodies: no unknown field, no type conversion, no NaN or infinity. A null is an absent field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def one_error(rule: str) -> WrapValidator:
    """One message for a union, instead of one for each of its arms."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("wrong_type", "must be {rule}", {"rule": rule}) from error

    return WrapValidator(validate)


STOP_AT_FIRST_ERROR = Field(fail_fast=True)
"""For every list: a body may hold hundreds of thousands of wrong entries, and one is enough to refuse it."""

TextOrTexts = Annotated[str | Annotated[list[str], STOP_AT_FIRST_ERROR], one_error("a string or a list of strings")]


class GenerateParameters(StrictModel):
    """How the text is generated. Names are transformers' `GenerationConfig`'s, then Text Generation Inference's."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: TextOrTexts | None = None
    stop_token_ids: Annotated[list[int], STOP_AT_FIRST_ERROR] | None = None
    ignore_eos: bool | None = None
    truncate: int | None = None
    details: bool | None = None
    return_full_text: bool | None = None
    # Sent by clients of Text Generation Inference: taken only with the value that changes nothing.
    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    grammar: dict[str, Any] | None = None
    top_n_tokens: int | None = None
    watermark: bool | None = None


class GenerateRequest(StrictModel):
    """Body of ``POST /generate``."""

    inputs: TextOrTexts
    parameters: GenerateParameters | None = None
    stream: bool | None = None
    model: str | None = None
