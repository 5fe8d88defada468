"""``POST /ner``: entities of texts, with character offsets."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.hf.schemas import EntityReply, NerParameters, NerReply, NerRequest
from server.api.encode.run import reply_to_texts, run
from server.api.http.dialect import SLUICE
from server.sentences import Reader
from server.serving.tagger import ServedTagger, TagOptions
from server.text.entities import Entity
from server.text.templated import RenderedPrompt

router = DialectRouter(SLUICE)


@router.post("/ner", response_model=NerReply)
async def ner(body: NerRequest, context: ContextDep) -> Response:
    """Find the entities of ``inputs``: a list of them for a text, a list of lists for a list of texts.

    ``start`` and ``end`` count characters of the text. A text longer than the model is read in windows that overlap
    by ``stride`` tokens, and answered as one. Of what a ``template`` makes, the answer holds the entities inside one
    variable's text, which ``variable`` names and ``start`` and ``end`` count in.
    """
    served = context.registry.get(ServedTagger, body.model)
    prompt = await body.rendered(context, body.inputs, "ner")
    inputs = prompt.text if prompt is not None else body.inputs
    assert inputs is not None
    texts = [inputs] if isinstance(inputs, str) else inputs
    parameters = body.parameters or NerParameters()
    options = _options(parameters)
    results = await run(
        context,
        served,
        texts,
        lambda record: served.tag(texts, options, record),
        Reader(parameters=NerParameters.model_fields),
    )
    return await reply_to_texts(inputs, results, _entities if prompt is None else _in_variables(prompt))


def _options(parameters: NerParameters) -> TagOptions:
    given = parameters.model_dump(exclude_none=True, exclude={"aggregation_strategy", "ignore_labels"})
    if parameters.aggregation_strategy is not None:
        given["strategy"] = parameters.aggregation_strategy
    if parameters.ignore_labels is not None:
        given["ignore_labels"] = frozenset(parameters.ignore_labels)
    return TagOptions(**given)


def _entities(entities: list[Entity]) -> list[EntityReply]:
    return [_entity(entity) for entity in entities]


def _in_variables(prompt: RenderedPrompt) -> Callable[[list[Entity]], list[EntityReply]]:
    """Entities that touch the template's own words are nobody's, and are left out."""

    def render(entities: list[Entity]) -> list[EntityReply]:
        placed = ((entity, prompt.place(entity.start, entity.end)) for entity in entities)
        return [_in_variable(entity, *place) for entity, place in placed if place is not None]

    return render


def _in_variable(entity: Entity, path: str, start: int) -> EntityReply:
    return {**_entity(entity), "start": start, "end": start + entity.end - entity.start, "variable": path}


def _entity(entity: Entity) -> EntityReply:
    span: EntityReply = {"score": entity.score, "word": entity.word, "start": entity.start, "end": entity.end}
    if entity.index is not None:
        return {"entity": entity.label, "index": entity.index, **span}
    return {"entity_group": entity.label, **span}
