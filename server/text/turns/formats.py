"""Which format of calls a model writes, read from its chat template."""

from __future__ import annotations

from server.text.turns.calls import CallFormat
from server.text.turns.json_formats import HermesFormat, LlamaFormat, MistralFormat
from server.text.turns.xml_format import XmlFormat

HERMES, LLAMA, MISTRAL, XML = HermesFormat(), LlamaFormat(), MistralFormat(), XmlFormat()


def describes_tools(chat_template: str) -> bool:
    """Whether the template has a place for tools."""
    return "tools" in chat_template


def call_format_of(chat_template: str) -> CallFormat | None:
    """None for a template that says nothing of calls, or in a format that is not read here."""
    if not describes_tools(chat_template):
        return None
    if "[TOOL_CALLS]" in chat_template:
        return MISTRAL
    if "<function=" in chat_template and "<parameter=" in chat_template:
        return XML
    if "<tool_call>" in chat_template:
        return HERMES
    is_llama = "<|start_header_id|>" in chat_template or "<|header_start|>" in chat_template
    if "<|python_tag|>" in chat_template or (is_llama and '"parameters"' in chat_template):
        return LLAMA
    return None
