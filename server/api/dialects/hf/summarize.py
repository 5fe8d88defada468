"""``POST /summarize``: shorter texts of texts, in the shape of Hugging Face's API."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from server.api.bodies.router import DialectRouter
from server.api.bodies.schemas import StrictModel, TextOrTexts
from server.api.context import ContextDep
from server.api.dialects.hf.rewriting import RewriteParameters, Rewriting, Split, options_of, reader, rewritten
from server.api.http.dialect import SLUICE
from server.text.languages import Direction

router = DialectRouter(SLUICE)


class SummarizeRequest(StrictModel):
    """Body of ``POST /summarize``."""

    inputs: TextOrTexts
    """A text, or a list that must contain at least one text."""
    parameters: RewriteParameters | None = None
    stream: bool | None = None
    """Send each token as a server-sent event. Only a single input can be streamed."""
    split: Split | None = None
    """``sentences`` shortens each sentence by itself and joins the results. Without it a text that is too long is
    refused."""
    model: str | None = None
    """The name of a served encoder-decoder model; without it the first one."""

    def fields(self) -> dict[str, Any]:
        """For the rules on options."""
        return {name: value for name in ("inputs", "stream") if (value := getattr(self, name)) is not None}


@router.post("/summarize", response_model=None)
async def summarize(body: SummarizeRequest, context: ContextDep) -> Response:
    """Summarise a text, or each of a list.

    The response is a list with an object for each text; with ``stream`` it is one event per token.
    """
    parameters = body.parameters or RewriteParameters()
    context.record.reader = reader(parameters)
    served = context.registry.encoder_decoders(body.model)[0]
    wanted = Rewriting(
        texts=[body.inputs] if isinstance(body.inputs, str) else body.inputs,
        key="summary_text",
        options=options_of(parameters, served.ready.max_source_len),
        direction=Direction(source=None, target=None, prefix=served.ready.summary_prefix),
        task_defaults=served.summary_defaults,
        split=body.split,
        is_cleaned=bool(parameters.clean_up_tokenization_spaces),
        body=body.fields(),
    )
    return await rewritten(context, served, wanted)
