"""Prompt templates as objects of the server, and the chat templates of its models; rendered in the sandbox."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from server.availability_errors import Unavailable
from server.client.sandbox import Sandbox
from server.errors import (
    ConfigurationError,
    InvalidParameter,
    InvalidRequest,
    SandboxFailure,
    SluiceError,
    TemplateNotFound,
)
from server.protocol import TokenizerFiles
from server.sentences import Field, sentence
from server.serving.template_files import Template, TemplateTask, read_folder
from server.text.templated import RenderedPrompt, VariableSpan

MAX_MESSAGES = 1024
CHECK_LIMIT_S = 10.0
"""For one template at start, when the models of the server may be loading."""
MAX_REFERENCE_CHARACTERS = 80


class Templates:
    """The templates of one folder, by name and version. The folder is read once."""

    def __init__(self, folder: str | None, sandbox: Sandbox) -> None:
        """Raises ConfigurationError that names the file."""
        self._sandbox = sandbox
        self._versions: dict[str, dict[int, Template]] = {}
        for template in read_folder(folder):
            self._versions.setdefault(template.name, {})[template.version] = template

    async def check(self) -> None:
        """Render every template once. Raises ConfigurationError that names the file and what is wrong in it."""
        for versions in self._versions.values():
            for template in versions.values():
                await self._check(template)

    async def check_chat(self, model: str, files: TokenizerFiles) -> None:
        """Raise ConfigurationError if the model's chat template is broken."""
        if files.chat_template is not None:
            try:
                await self._sandbox.call("check_chat", files.chat_template, timeout_s=CHECK_LIMIT_S)
            except SandboxFailure as error:
                raise ConfigurationError(f"The chat template of model {model} is broken: {error.message}") from None

    async def render(
        self, reference: str, task: TemplateTask, variables: Mapping[str, Any], examples: Sequence[dict[str, Any]]
    ) -> RenderedPrompt:
        """The prompt that ``name``, its highest version, or ``name@version`` makes of the client's values.

        Raises InvalidRequest that names a variable which is missing, unknown or wrong, and TemplateNotFound.
        """
        template = self.find(reference)
        if template.task != task:
            raise InvalidParameter("template", reference, f"is a template for {template.task}, not for {task}")
        values = template.check_values(variables, list(examples))
        try:
            answer = await self._rendered(template, values, template.example_values(list(examples)))
        except SandboxFailure as error:
            raise _named("template", error) from None
        return _prompt(answer, template)

    async def render_chat(
        self,
        files: TokenizerFiles,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """The prompt that the model's own chat template makes of the messages.

        ``options`` (``chat_template_kwargs``) are numbers, texts and truth values under names that the template uses.
        """
        if files.chat_template is None:
            raise InvalidRequest(sentence("This model has no chat template. Send {inputs}."), param="messages")
        _check_chat_values(messages, options or {})
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")
        special_tokens = {name: token for name in names if (token := getattr(files, name)) is not None}
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0).isoformat()
        try:
            answer = await self._sandbox.call(
                "render_chat",
                files.chat_template,
                list(messages),
                dict(options or {}),
                special_tokens,
                now,
                add_generation_prompt,
                list(tools),
            )
        except SandboxFailure as error:
            raise _named("chat_template_kwargs" if options else "messages", error) from None
        return _prompt(answer, None)

    def find(self, reference: str) -> Template:
        """``name`` is its highest version. A name is looked up, and nothing else is done with it."""
        name, at, version = reference[:MAX_REFERENCE_CHARACTERS].partition("@")
        versions = self._versions.get(name, {})
        if at:
            template = versions.get(int(version)) if version.isascii() and version.isdecimal() else None
        else:
            template = versions.get(max(versions, default=0))
        if template is None or reference not in (name, f"{name}@{template.version}"):
            raise TemplateNotFound(reference, sorted(self._versions))
        return template

    def describe(self) -> list[dict[str, Any]]:
        """Every version of every template."""
        return [template.describe() for versions in self._versions.values() for template in versions.values()]

    async def _check(self, template: Template) -> None:
        examples = template.examples
        samples: list[dict[str, Any]] = []
        if examples is not None:
            sample = {name: field.sample for name, field in examples.fields.items()}
            samples = [sample] * max(examples.min_count, min(1, examples.max_count))
        values = {name: variable.sample for name, variable in template.variables.items()}
        try:
            await self._sandbox.call(
                "check_template",
                template.text,
                list(template.variables),
                examples and examples.text,
                list(examples.fields) if examples is not None else [],
                timeout_s=CHECK_LIMIT_S,
            )
            await self._rendered(template, values, samples, CHECK_LIMIT_S)
        except SandboxFailure as error:
            raise ConfigurationError(f"Template {template.file}: {error.message}") from None
        except Unavailable as error:
            raise ConfigurationError(f"Template {template.file} could not be checked: {error.message}") from None
        except SluiceError as error:
            raise ConfigurationError(f"Templates cannot be rendered here: {error.message}") from None

    async def _rendered(
        self, template: Template, values: dict[str, Any], examples: list[dict[str, Any]], limit_s: float = 2.0
    ) -> dict[str, Any]:
        layout = template.examples
        answer: dict[str, Any] = await self._sandbox.call(
            "render_template",
            template.text,
            values,
            layout and layout.text,
            layout.separator if layout is not None else "",
            examples,
            timeout_s=limit_s,
        )
        return answer


def _named(param: str, error: SandboxFailure) -> SandboxFailure:
    """The error of the body's field."""
    error.field = param
    # What befalls any work in the sandbox is told of "it".
    if error.message.startswith("It "):
        error.words = sentence("{field} cannot be rendered. {said}", field=Field(param), said=error.message)
    return error


def _check_chat_values(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        template = "{messages} must have 1 to {limit} entries; it has {count}."
        raise InvalidRequest(sentence(template, limit=MAX_MESSAGES, count=len(messages)), param="messages")
    for name, value in options.items():
        if not isinstance(value, (str, int, float, bool)):
            raise InvalidParameter(f"chat_template_kwargs.{name}", value, "must be a string, a number, true or false")


def _prompt(answer: Mapping[str, Any], template: Template | None) -> RenderedPrompt:
    return RenderedPrompt(
        text=answer["text"],
        template_spans=[(start, stop) for start, stop in answer["template_spans"]],
        variable_spans=[VariableSpan(*span) for span in answer["variable_spans"]],
        name=template.name if template is not None else None,
        version=template.version if template is not None else None,
        parameters=template.parameters if template is not None else {},
        add_special_tokens=template is not None,
    )
