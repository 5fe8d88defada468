"""What a request's outputs may consist of, and the readers that find it: calls of its tools, and reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api.text.messages import template_tools
from server.api.text.schemas import NamedTool, Tool
from server.api.text.structure import Structure
from server.errors import ConflictingParameters, InvalidParameter, InvalidRequest
from server.serving.prompt import EndWatch
from server.text.turns.call_reader import CallReader
from server.text.turns.calls import CallFormat
from server.text.turns.forced import ChosenCall, OneCall
from server.text.turns.formats import HERMES, call_format_of, describes_tools
from server.text.turns.pieces import CallIds, PlainText, Reader
from server.text.turns.thinking import ThinkingReader, ThinkMarks, think_marks_of


@dataclass(frozen=True, kw_only=True)
class ToolWish:
    """The tools that a request offers, and how the model is to use them."""

    tools: Sequence[Tool] = ()
    choice: Literal["none", "auto", "required"] | NamedTool | None = None
    is_parallel: bool = True
    """Whether one answer may hold several calls."""

    @property
    def is_free(self) -> bool:
        """Whether the model may call tools, and may answer in words."""
        return bool(self.tools) and self.choice in (None, "auto")

    def forced(self) -> Sequence[Tool] | None:
        """The tools of which the answer must call one; None where it need not call any."""
        if self.choice in (None, "none", "auto"):
            return None
        if not self.tools:
            raise InvalidRequest("tool_choice requires tools.", param="tool_choice")
        if not isinstance(self.choice, NamedTool):
            return self.tools
        wanted = self.choice.function.name
        tools = [tool for tool in self.tools if tool.function.name == wanted]
        if not tools:
            known = ", ".join(tool.function.name for tool in self.tools)
            raise InvalidParameter("tool_choice", wanted, f"must be the name of a tool: {known}")
        return tools


NO_TOOLS = ToolWish()


def allowed_tools(tools: Sequence[Tool], names: Sequence[str], field: str) -> list[Tool]:
    """The tools that ``tool_choice`` lists in ``field``. Raises for one that is not among the tools."""
    for name in names:
        if all(name != tool.function.name for tool in tools):
            raise InvalidParameter(field, name, "must be the name of a tool")
    return [tool for tool in tools if tool.function.name in names]


@dataclass(frozen=True, kw_only=True)
class TurnPlan:
    """How the outputs of one request are read."""

    wish: ToolWish = NO_TOOLS
    call_format: CallFormat = HERMES
    """Of the model's chat template; Hermes' where it has none, for the ids of forced calls."""
    think_marks: ThinkMarks | None = None
    """None where nothing is read as reasoning."""
    shows_reasoning: bool = True
    continued: str = ""
    """Text of the assistant's that the output continues."""
    described: Sequence[Tool] = ()
    """What the chat template shows to the model."""

    @property
    def prompt(self) -> dict[str, Any]:
        """What the plan adds to the `PromptSource`."""
        return {"tools": template_tools(self.described), "written": self.written, "end_watch": self.end_watch}

    @property
    def written(self) -> tuple[str, ...]:
        """Marks that the readers look for. Where they are special tokens, they have to stand in the text."""
        return (*(self.call_format.marks if self.wish.is_free else ()), *(self.think_marks or ()))

    @property
    def end_watch(self) -> Callable[[str], EndWatch] | None:
        """Ends an output with its only call, where it may have no more than one."""
        return None if self.wish.is_parallel or not self.wish.is_free else self._watch

    def _watch(self, prompt: str) -> EndWatch:
        reader = self.reader(prompt, "")

        def is_over(text: str) -> bool:
            reader.push(text)
            return reader.is_over

        return is_over

    def reader(self, prompt: str, id_prefix: str) -> Reader:
        """For one output; ``prompt`` is the text that it continues."""
        answer = self._answer_reader(self.call_format.ids(id_prefix))
        marks = self.think_marks
        if marks is None:
            return answer
        if not self.continued.strip():
            return ThinkingReader(marks, answer, is_open=marks.is_open(prompt))
        return ThinkingReader(marks, answer, is_open=True) if marks.is_unfinished(self.continued) else answer

    def _answer_reader(self, ids: CallIds) -> Reader:
        forced = self.wish.forced()
        if forced is not None:
            return OneCall(forced[0].function.name, ids) if len(forced) == 1 else ChosenCall(ids)
        if not self.wish.is_free:
            return PlainText()
        functions = {tool.function.name: tool.function.parameters or {} for tool in self.wish.tools}
        return CallReader(self.call_format, functions, ids, max_calls=None if self.wish.is_parallel else 1)


def turn_plan(
    chat_template: str,
    wish: ToolWish,
    structure: Structure | None,
    *,
    reads_reasoning: bool = True,
    shows_reasoning: bool = True,
    continued: str = "",
) -> TurnPlan:
    """``structure`` is what the client asks for besides forced calls. Raises where the model may call and cannot, and
    for two tools of one name.

    An output with a structure follows it from its first character, so it holds no reasoning.
    """
    names = [tool.function.name for tool in wish.tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"Two tools are named {twice}. Tool names must be unique.", param="tools")
    call_format = call_format_of(chat_template)
    if wish.is_free and call_format is None:
        raise InvalidRequest(
            "The chat template of this model has no tool calls in a format that the server supports. "
            'To force a call, set tool_choice to "required" or to a function. Otherwise remove tools.',
            param="tools",
        )
    if wish.is_free and structure is not None:
        raise ConflictingParameters(
            structure.field, "tools", "an output that may be a tool call cannot follow a structure; set tool_choice"
        )
    reasons = reads_reasoning and structure is None and wish.forced() is None
    return TurnPlan(
        wish=wish,
        call_format=call_format or HERMES,
        think_marks=think_marks_of(chat_template) if reasons else None,
        shows_reasoning=shows_reasoning,
        continued=continued,
        described=wish.tools if wish.choice != "none" and describes_tools(chat_template) else (),
    )
