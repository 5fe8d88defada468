"""``POST /fill-mask``: the words that fit a mask."""

from __future__ import annotations

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.context import ContextDep
from server.api.dialects.hf.schemas import FillingReply, FillMaskParameters, FillMaskReply, FillMaskRequest
from server.api.encode.run import reply_to_texts, run
from server.api.http.dialect import SLUICE
from server.sentences import Reader
from server.serving.mask_filler import DEFAULT_TOP_K, Filling, FillOptions, ServedMaskFiller

router = DialectRouter(SLUICE)


@router.post("/fill-mask", response_model=FillMaskReply)
async def fill_mask(body: FillMaskRequest, context: ContextDep) -> Response:
    """Fill the masks of ``inputs``: a list of candidates for a text with one mask, for several one list per mask.

    A list of texts is answered with a list of these.
    """
    served = context.registry.get(ServedMaskFiller, body.model)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    parameters = body.parameters or FillMaskParameters()
    options = _options(parameters)
    results = await run(
        context,
        served,
        texts,
        lambda record: served.fill(texts, options, record),
        Reader(parameters=FillMaskParameters.model_fields),
    )
    return await reply_to_texts(body.inputs, results, _masks)


def _options(parameters: FillMaskParameters) -> FillOptions:
    targets = [parameters.targets] if isinstance(parameters.targets, str) else parameters.targets
    return FillOptions(top_k=parameters.top_k or DEFAULT_TOP_K, targets=targets)


def _masks(masks: list[list[Filling]]) -> list[FillingReply] | list[list[FillingReply]]:
    replies = [[_filling(filling) for filling in fillings] for fillings in masks]
    return replies[0] if len(replies) == 1 else replies


def _filling(filling: Filling) -> FillingReply:
    return {
        "score": filling.score,
        "token": filling.token,
        "token_str": filling.token_str,
        "sequence": filling.sequence,
    }
