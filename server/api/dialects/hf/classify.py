"""``POST /classify``: labels and scores of texts and pairs."""

from __future__ import annotations

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import Context, ContextDep
from server.api.dialects.hf.schemas import (
    ClassifyInput,
    ClassifyParameters,
    ClassifyReply,
    ClassifyRequest,
    LabelReply,
    TextPairBody,
)
from server.api.dialects.vllm import classify as vllm_classify
from server.api.encode.run import run
from server.api.http.dialect import SLUICE
from server.api.http.json_reply import json_reply
from server.errors import ConflictingParameters, InvalidRequest
from server.sentences import Reader
from server.serving.classifier import ClassifyOptions, LabelScore, ServedClassifier, TextPair
from server.text.truncation import Truncation

router = DialectRouter(SLUICE)


@router.post("/classify", response_model=ClassifyReply)
async def classify(body: ClassifyRequest, context: ContextDep) -> Response:
    """Label ``inputs``: a text, a pair ``{"text", "text_pair"}``, or a list of these; or what a ``template`` makes.

    The answer holds one list for each input, also where there is but one: its labels, the highest score first, all of
    them unless ``top_k`` or ``threshold`` says otherwise. With ``input`` it is that of ``/v1/classify``.
    """
    if body.input is not None:
        return await _as_vllm(body, body.input, context)
    if body.use_activation is not None:
        raise InvalidRequest(
            "use_activation requires input; with inputs, set function_to_apply.", param="use_activation"
        )
    served = context.registry.get(ServedClassifier, body.model)
    prompt = await body.rendered(context, body.inputs, "classify")
    inputs = _pairs(body.inputs) if prompt is None else [TextPair(prompt.text)]
    parameters = body.parameters or ClassifyParameters()
    options = _options(parameters)
    results = await run(
        context,
        served,
        inputs,
        lambda record: served.classify(inputs, options, record),
        Reader(parameters=ClassifyParameters.model_fields),
    )
    return json_reply([[_label(score) for score in scores] for scores in results])


async def _as_vllm(body: ClassifyRequest, inputs: str | list[str], context: Context) -> Response:
    for name in ("inputs", "template", "variables", "examples", "parameters"):
        if getattr(body, name) is not None:
            raise ConflictingParameters("input", name, "they belong to different APIs; send only inputs")
    context.record.reader = Reader({"inputs": "input"})
    return await vllm_classify.answer(context, body.model, inputs, body.use_activation is False)


def _pairs(inputs: ClassifyInput | list[ClassifyInput] | None) -> list[TextPair]:
    assert inputs is not None
    return [_pair(item) for item in (inputs if isinstance(inputs, list) else [inputs])]


def _pair(item: ClassifyInput) -> TextPair:
    if isinstance(item, TextPairBody):
        return TextPair(item.text, item.text_pair)
    return TextPair(item) if isinstance(item, str) else TextPair(*item)


def _options(parameters: ClassifyParameters) -> ClassifyOptions:
    return ClassifyOptions(
        function=parameters.function_to_apply,
        top_k=parameters.top_k,
        threshold=parameters.threshold,
        truncation=Truncation() if parameters.truncate else None,
    )


def _label(score: LabelScore) -> LabelReply:
    return {"label": score.label, "score": score.score}
