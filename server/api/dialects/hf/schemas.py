"""Bodies and answers of ``/classify``, ``/ner`` and ``/fill-mask``, in the shapes of Hugging Face's inference API."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.api.bodies.schemas import STOP_AT_FIRST_ERROR, StrictModel, TextOrTexts, one_error
from server.api.encode.templated import TemplatedRequest
from server.serving.classifier import Function
from server.text.entities import Strategy

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class TextPairBody(StrictModel):
    """A text and the one it is judged with."""

    text: str
    text_pair: str | None = None


# A list directly in `inputs` is a batch; only inside of one does a list of two texts mean a pair.
TextListBody = Annotated[list[str], Field(min_length=1, max_length=2)]
ClassifyInput = str | TextPairBody | TextListBody
ClassifyInputs = Annotated[
    str | TextPairBody | Annotated[list[ClassifyInput], STOP_AT_FIRST_ERROR],
    one_error(
        "a text, a pair as an object of text and text_pair, or a list of these; "
        "inside of a list a pair may be a list of two texts"
    ),
]


class ClassifyParameters(StrictModel):
    """How logits become the answer."""

    function_to_apply: Function | None = None
    top_k: Count | None = None
    threshold: float | None = None
    truncate: bool | None = None


class ClassifyRequest(TemplatedRequest):
    """Body of ``POST /classify``."""

    inputs: ClassifyInputs | None = None
    """A list must contain at least one text. inputs is required unless there is a template."""
    parameters: ClassifyParameters | None = None
    input: TextOrTexts | None = None
    """Instead of inputs; the response then has vLLM's shape. They belong to different APIs; send only inputs or only
    input."""
    use_activation: bool | None = None
    """False returns raw scores. use_activation requires input; with inputs, set function_to_apply."""
    model: str | None = None
    """The name of a served classifier; without it the first one."""


class NerParameters(StrictModel):
    """How labelled tokens become entities."""

    aggregation_strategy: Strategy | None = None
    ignore_labels: Annotated[list[str], STOP_AT_FIRST_ERROR] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None
    threshold: Probability | None = None


class NerRequest(TemplatedRequest):
    """Body of ``POST /ner``."""

    inputs: TextOrTexts | None = None
    """A list must contain at least one text. inputs is required unless there is a template."""
    parameters: NerParameters | None = None
    model: str | None = None
    """The name of a served tagger; without it the first one."""


class FillMaskParameters(StrictModel):
    """Which candidates come back."""

    top_k: Count | None = None
    targets: TextOrTexts | None = None
    """Only these words are candidates; each must be one token of this model's vocabulary."""


class FillMaskRequest(StrictModel):
    """Body of ``POST /fill-mask``."""

    inputs: TextOrTexts
    """Each text must contain the mask token of the model (see /tokenizer_info); a list must not be empty."""
    parameters: FillMaskParameters | None = None
    model: str | None = None
    """The name of a served mask filler; without it the first one."""


class LabelReply(TypedDict):
    """One label of a text."""

    label: str
    score: float


class EntityReply(TypedDict):
    """One entity; with strategy ``none`` one token, whose label is ``entity``.

    Of a template, ``start`` and ``end`` count characters of the text that ``variable`` names.
    """

    entity_group: NotRequired[str]
    entity: NotRequired[str]
    score: float
    index: NotRequired[int]
    word: str
    start: int
    end: int
    variable: NotRequired[str]


class FillingReply(TypedDict):
    """One candidate for one mask."""

    score: float
    token: int
    token_str: str
    sequence: str


ClassifyReply = list[list[LabelReply]]
NerReply = list[EntityReply] | list[list[EntityReply]]
FillMaskReply = list[FillingReply] | list[list[FillingReply]] | list[list[list[FillingReply]]]
