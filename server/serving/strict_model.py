"""What JSON from outside is read with: pydantic models that convert nothing, and their findings in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

RULES = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "none_required": "must be null",
}
STOP_AT_FIRST_ERROR = Field(fail_fast=True)
"""For every list: a body may hold hundreds of thousands of wrong entries, and one is enough to refuse it."""


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


def rule_of(error: Mapping[str, Any]) -> str:
    """What the value must be, to stand after "it". ``error`` is one of pydantic's."""
    if error["type"] in RULES:
        return RULES[error["type"]].format(**error.get("ctx", {}))
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if message.startswith("must") else f"is refused: {message}"
