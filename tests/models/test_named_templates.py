"""A tokenizer with several chat templates: the one with tools is used where there are tools."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from server.models.tokenizer_files import one_template
from server.text.turns.formats import HERMES, call_format_of
from tests.api.openai import tool_templates
from tests.api.scripted import TOKENIZER
from tests.sandbox.chat_templates import CHATML

TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}]
SPACED = "\n{{ messages[0].content }} \n  \n"


@pytest.mark.parametrize("default", [CHATML, SPACED])
@pytest.mark.parametrize(
    "tool_use", [tool_templates.QWEN, "  \n{% for tool in tools %}\n {{ tool }}\n  {% endfor %}  ", SPACED]
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_named_templates_render_as_in_transformers(default: str, tool_use: str, tools: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend)
    turns = [{"role": "user", "content": "Hello"}]
    named = {"default": default, "tool_use": tool_use}
    tokenizer.chat_template = named
    asked = {"tools": tools, "tokenize": False, "add_generation_prompt": True}
    wanted = tokenizer.apply_chat_template(turns, **asked)
    assert tokenizer.apply_chat_template(turns, chat_template=one_template(named), **asked) == wanted


def test_calls_are_read_in_the_format_of_the_template_with_tools() -> None:
    combined = one_template({"default": CHATML, "tool_use": tool_templates.QWEN})
    assert combined is not None and call_format_of(combined) is HERMES
    assert one_template({"default": CHATML}) == one_template(CHATML) == CHATML
    assert one_template({"rag": CHATML}) is one_template(None) is None
