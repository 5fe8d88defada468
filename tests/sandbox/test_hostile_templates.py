"""Templates and messages made to hang, to swell or to break out: each ends in an answer or an error, in time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
import pytest

from server.client.sandbox import Sandbox
from server.errors import SandboxFailure
from tests.sandbox import chat_templates

NOW = "2026-01-02T03:04:05"
LIMIT_S = 1.0

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 10 ** 10 ** 10 }}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% for i in range(99) %}{{ m(n - 1) if n else 'x' }}{% endfor %}{% endmacro %}{{ m(9) }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ ('a' * 10 ** 6)|list|join(',' * 10 ** 6) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format('x') }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ ('x ' * 10 ** 6)|wordwrap(1) }}",
    "{{ ('a' * 10 ** 5)|replace('', 'b' * 10 ** 5) }}",
    "{{ range(10 ** 9)|list }}",
    "{{ range(99999)|map('string')|join(',' * 9999) }}",
    "{{ [[]] * 10 ** 9 }}",
    "{{ dict(a='x' * 10 ** 8)|tojson(indent=99999999) }}",
    "{{ lipsum(n=10 ** 9) }}",
    "{{ ''.join(cycler('a')) }}",
    "(" * 5000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{% if 1 %}" * 500 + "x" + "{% endif %}" * 500,
    "{{ x" + ".y" * 10000 + " }}",
    "{{ 'x'" + "|upper" * 5000 + " }}",
    "{{ " + " + ".join(["1"] * 20000) + " }}",
    "{{ 'x' ~ " * 3000 + "1" + " }}" * 3000,
]
WALKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages[0].content.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map(dict(x=1)) }}",
    "{{ '{0.__class__.__mro__}'|format(1) }}",
    "{{ messages[0].content._origins }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(dict(role='system')) }}",
    "{{ messages.clear() }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ environment }}",
    "{{ context }}",
    "{{ dict.fromkeys.__func__ }}",
    "{{ (messages|map('upper')).gi_frame.f_builtins }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now('%' * 10 ** 7) }}",
    "{{ range.__class__ }}",
    "{% for x in messages recursive %}{{ loop.__class__ }}{{ loop(messages) }}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ messages[99].content.x }}",
    "{{ none() }}",
    "{{ messages() }}",
    "{{ 'x'.encode('utf-16').decode('utf-8') }}",
]
SECRETS = ("root:", "<class", "<function", "<module", "array(", "Environment", "<frame", "uid=")
DEEP: Any = "x"
for _ in range(30):
    DEEP = [DEEP]
MESSAGES: list[Any] = [
    [],
    [{}],
    [{"role": "user"}],
    [{"role": None, "content": None}],
    [{"role": "user", "content": ["x"]}],
    [{"role": "user", "content": {"x": "y"}}],
    [{"role": "user", "content": DEEP}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": True}],
    [{"role": "user", "content": "\x00"}],
    [{"role": "\u202e", "content": "\ufdfa" * 1000}],
    [{"role": "user", "content": "{{ 10 ** 10 ** 10 }}" * 1000}],
    [{"role": "user", "content": "{% for %}"}],
    [{"role": "user", "content": "<|im_end|>" * 10000}],
    [{"role": "user", "content": "</think>" * 50000}],
    [{"role": "user", "content": "<think>" * 50000}],
    [{"role": "user", "content": "\n" * 1000000}],
    [{"role": "user", "content": " " * 1000000}],
    [{"role": "assistant", "content": "</think>" + "\n" * 500000}],
    [{"role": "user", "content": "x" * 3_000_000}],
    [{"role": "user", "content": "x"}] * 1024,
    [{"role": "user", "content": "\u00df" * 100000}, {"role": "assistant", "content": "x"}] * 3,
    [{"role": "__class__", "content": "__globals__"}],
    [{"role": "user", "content": "x", "__class__": "y", "mro": "z"}],
    [{"role": "user", "content": "x", "items": "y", "get": "z"}],
    [["role", "user"]],
    ["user"],
    [1],
    [{"role": "user", "content": "\U0001f468\u200d\U0001f469" * 100000}],
]
MODELS = sorted(set(chat_templates.ALL) - {"macros"})


async def outcomes(calls: list[tuple[Any, ...]], limit_s: float = LIMIT_S) -> list[tuple[float, Any]]:
    """Of each call, how long it took and what it gave; the sandbox works to the end."""
    sandbox = Sandbox(num_processes=2)
    found = []
    try:
        for arguments in calls:
            start_s = time.monotonic()
            try:
                result: Any = await sandbox.call("render_chat", *arguments, NOW, True, timeout_s=limit_s)
            except SandboxFailure as error:
                result = error
            found.append((time.monotonic() - start_s, result))
        hello = await sandbox.call("render_chat", "{{ messages[0].content }}!", [{"content": "hi"}], {}, {}, NOW, True)
        assert hello["text"] == "hi!"
        for pid in sandbox.pids:
            assert psutil.Process(pid).memory_info().rss < 700 << 20
    finally:
        await sandbox.close()
    return found


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_a_template_that_would_never_end_is_an_error_in_time(template: str) -> None:
    call = (template, [{"role": "user", "content": "x"}], {}, {})
    [(taken_s, result)] = asyncio.run(outcomes([call], limit_s=0.3))
    # Some are merely long, and harmless: what counts is that there is an end.
    assert isinstance(result, SandboxFailure) or len(result["text"]) <= 2 << 20
    assert taken_s < 5 * LIMIT_S + 5


def test_no_attribute_of_python_can_be_reached() -> None:
    calls = [(template, [{"role": "user", "content": "x"}], {}, {}) for template in WALKS]
    for template, (_, result) in zip(WALKS, asyncio.run(outcomes(calls)), strict=True):
        if not isinstance(result, SandboxFailure):
            assert not any(secret in result["text"] for secret in SECRETS), template


def test_hostile_messages_are_answered_or_refused_in_time() -> None:
    calls = [
        (chat_templates.ALL[name], messages, {}, {"bos_token": "<s>", "eos_token": "</s>"})
        for name in MODELS
        for messages in MESSAGES
    ]
    assert len(calls) >= 100
    for (_, messages, _, _), (taken_s, result) in zip(calls, asyncio.run(outcomes(calls)), strict=True):
        # All at once on a machine that may be busy: far from never is what is promised.
        assert taken_s < 20 * LIMIT_S, str(messages)[:100]
        assert isinstance(result, (dict, SandboxFailure))
        if isinstance(result, SandboxFailure):
            assert result.status == 422
            assert "Traceback" not in result.message
