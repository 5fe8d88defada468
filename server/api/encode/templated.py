"""Bodies that may have an operator's template in place of ``inputs``."""

from __future__ import annotations

from typing import Annotated, Any

from server.api.bodies.schemas import STOP_AT_FIRST_ERROR, StrictModel
from server.api.context import Context
from server.errors import ConflictingParameters, InvalidRequest
from server.serving.template_files import TemplateTask
from server.text.templated import RenderedPrompt


class TemplatedRequest(StrictModel):
    """What a body may have in place of ``inputs``: an operator's template and what goes into it."""

    template: str | None = None
    """The name of a template of this server, or name@version. A template creates the input; send only one of them."""
    variables: dict[str, Any] | None = None
    """Values for the template's variables. They require a template."""
    examples: Annotated[list[dict[str, Any]], STOP_AT_FIRST_ERROR] | None = None
    """Examples for a template. They require a template."""

    async def rendered(self, context: Context, inputs: Any, task: TemplateTask) -> RenderedPrompt | None:
        """The template's text; None for a body with ``inputs``. Raises unless there is one of the two."""
        if self.template is None:
            self._check_no_template(inputs)
            return None
        if inputs is not None:
            raise ConflictingParameters("template", "inputs", "a template creates the input; send only one of them")
        templates = context.registry.services.templates
        rendering = templates.render(self.template, task, self.variables or {}, self.examples or [])
        return await context.until_disconnect(rendering)

    def _check_no_template(self, inputs: Any) -> None:
        if inputs is None:
            raise InvalidRequest("inputs is required unless there is a template.", param="inputs")
        for name in ("variables", "examples"):
            if getattr(self, name) is not None:
                raise InvalidRequest(f"{name} requires a template.", param=name)
