"""``POST /ner``: entities of texts, with character offsets."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.api import encoder_route
from server.api.encoder_schemas import EntityReply, NerParameters, NerReply, NerRequest
from server.serving.tagger import ServedTagger, TagOptions
from server.text.entities import Entity

router = APIRouter()


@router.post("/ner", response_model=NerReply)
async def ner(body: NerRequest, request: Request) -> Response:
    """Find the entities of ``inputs``: a list of them for a text, a list of lists for a list of texts.

    ``start`` and ``end`` count characters of the text. A text longer than the model is read in windows that overlap
    by ``stride`` tokens, and answered as one.
    """
    served: ServedTagger = request.app.state.registry.get("ner", body.model)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    parameters = body.parameters or NerParameters()
    options = _options(parameters)
    results = await encoder_route.run(
        request, served, texts, parameters, lambda record: served.tag(texts, options, record)
    )
    return await encoder_route.reply_to_texts(body.inputs, results, _entities)


def _options(parameters: NerParameters) -> TagOptions:
    given = parameters.model_dump(exclude_none=True, exclude={"aggregation_strategy", "ignore_labels"})
    if parameters.aggregation_strategy is not None:
        given["strategy"] = parameters.aggregation_strategy
    if parameters.ignore_labels is not None:
        given["ignore_labels"] = frozenset(parameters.ignore_labels)
    return TagOptions(**given)


def _entities(entities: list[Entity]) -> list[EntityReply]:
    return [_entity(entity) for entity in entities]


def _entity(entity: Entity) -> EntityReply:
    span: EntityReply = {"score": entity.score, "word": entity.word, "start": entity.start, "end": entity.end}
    if entity.index is not None:
        return {"entity": entity.label, "index": entity.index, **span}
    return {"entity_group": entity.label, **span}
