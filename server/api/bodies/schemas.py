"""The bodies of requests: names and types. Ranges, and what fits a model, are checked where the model is known."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
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

AT_LEAST_1 = Field(json_schema_extra={"minimum": 1})
NOT_EMPTY = Field(json_schema_extra={"minItems": 1})
"""For the documentation only: what else is refused where the model is known."""
TextOrTexts = Annotated[
    str | Annotated[list[str], STOP_AT_FIRST_ERROR, NOT_EMPTY], one_error("a string or a list of strings")
]


NullOnly = Annotated[Any, WithJsonSchema({"type": "null"})]
"""A field that is refused by name."""
Ids = Annotated[list[int], STOP_AT_FIRST_ERROR]
IdOrIds = Annotated[int | Ids, one_error("a token id or a list of token ids")]
Texts = Annotated[list[str], STOP_AT_FIRST_ERROR]
Bias = Annotated[float | bool | Literal["-inf"], one_error('a number, false or "-inf"')]
# A pair is a tuple to pydantic, and JSON has lists.
PAIR = Strict(False)
TokenBias = Annotated[tuple[int, Bias], PAIR]
SequenceBias = Annotated[tuple[Ids, Bias], PAIR]
LogitBias = Annotated[
    dict[str, Bias] | Annotated[list[TokenBias], STOP_AT_FIRST_ERROR],
    one_error("an object of token ids and amounts, or a list of [id, amount]"),
]
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


class RankBy(StrictModel):
    """What ranks the samples of ``best_of``."""

    model: str
    label: str


class GenerateParameters(StrictModel):
    """How the text is generated. Each field is the option of that name in `serving.options.table.GenerateOptions`.

    Names are transformers' `GenerationConfig`'s, then Text Generation Inference's.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_time: float | None = None
    truncate: int | None = None
    stop: TextOrTexts | None = None
    stop_token_ids: Ids | None = None
    eos_token_id: IdOrIds | None = None
    ignore_eos: bool | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: IdOrIds | None = None
    exponential_decay_length_penalty: Annotated[tuple[int, float], PAIR] | None = None

    do_sample: bool | None = None
    seed: int | None = None
    temperature: float | None = None
    top_n_sigma: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None

    num_return_sequences: int | None = None
    n: int | None = None
    best_of: int | None = None
    rank_by: RankBy | None = None
    num_beams: int | None = None
    num_beam_groups: int | None = None
    diversity_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: Early | None = None

    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_scope: Scope | None = None
    penalize_template: bool | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_range: int | None = None
    dry_sequence_breakers: Texts | None = None

    logit_bias: LogitBias | None = None
    sequence_bias: Annotated[list[SequenceBias], STOP_AT_FIRST_ERROR] | None = None
    bad_words_ids: Annotated[list[Ids], STOP_AT_FIRST_ERROR] | None = None
    bad_words: Texts | None = None
    allowed_token_ids: Ids | None = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    renormalize_logits: bool | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    banned_phrases: Texts | None = None
    max_rewinds: int | None = None
    penalties: Annotated[list[Penalty], STOP_AT_FIRST_ERROR] | None = None
    grammar: dict[str, Any] | None = None

    details: bool | None = None
    top_n_tokens: int | None = None
    logprob_token_ids: Ids | None = None
    decoder_input_details: bool | None = None
    logprobs_mode: Literal["raw", "processed"] | None = None
    return_full_text: bool | None = None
    return_parameters: bool | None = None

    # Sent by clients of peers: taken only with the value that changes nothing.
    penalty_alpha: float | None = None
    adapter_id: str | None = None
    watermark: bool | None = None


class Message(StrictModel):
    """One turn of a conversation."""

    role: str
    content: str


class GenerateRequest(StrictModel):
    """Body of ``POST /generate``: a prompt as text, as a template with its variables, or as a conversation."""

    inputs: TextOrTexts | None = None
    """A text, or a list that must contain at least one text. inputs is required, or a template, or messages."""
    template: str | None = None
    """The name of a template of this server, or name@version. A request has only one prompt."""
    variables: dict[str, Any] | None = None
    """Values for the template's variables."""
    examples: Annotated[list[dict[str, Any]], STOP_AT_FIRST_ERROR] | None = None
    """Examples for the template, where it takes some."""
    messages: Annotated[list[Message], STOP_AT_FIRST_ERROR] | None = None
    """A conversation of 1 to 1024 entries, for models that have a chat template. A request has only one prompt."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the model's chat template; set messages, or leave it out."""
    chat_template: NullOnly = None
    """Not supported: messages are rendered with the chat template of the model's folder."""
    parameters: GenerateParameters | None = None
    cache_salt: str | None = None
    """Prompts of different salts never share cached tokens."""
    stream: bool | None = None
    """Send each token as a server-sent event. Only a single input can be streamed."""
    model: str | None = None
    """The name of a served model; without it the first that generates."""

    def fields(self) -> dict[str, Any]:
        """What stands beside the parameters, as far as it is given."""
        return {name: value for name, value in self if value is not None and name not in ("parameters", "model")}
