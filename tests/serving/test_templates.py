"""Prompt templates: what their files may say, and what a client may put into them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from server.client.sandbox import Sandbox
from server.errors import (
    ConfigurationError,
    InvalidParameter,
    InvalidRequest,
    SluiceError,
    TemplateNotFound,
    UnknownParameter,
)
from server.protocol import TokenizerFiles
from server.serving.templates import Templates
from tests.sandbox.chat_templates import CHATML, LLAMA_2, QWEN_3

T = TypeVar("T")
DEPLOYED = Path(__file__).parents[2] / "deploy/templates"
GREETING = 'task = "generate"\ntext = "Hello {{ who }}!"\n[variables.who]\n'


def run(work: Callable[[Templates], Coroutine[Any, Any, T]], folder: Path | None, *, check: bool = False) -> T:
    async def main() -> T:
        sandbox = Sandbox(num_processes=1)
        try:
            templates = Templates(None if folder is None else str(folder), sandbox)
            if check:
                await templates.check()
            return await asyncio.wait_for(work(templates), 60)
        finally:
            await sandbox.close()

    return asyncio.run(main())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "greeting.toml").write_text(GREETING)
    yield tmp_path


async def nothing(templates: Templates) -> list[dict[str, Any]]:
    return templates.describe()


def test_the_templates_in_deploy_are_served() -> None:
    described = run(nothing, DEPLOYED, check=True)
    assert {(entry["name"], entry["version"], entry["task"]) for entry in described} == {
        ("sentiment-by-example", 1, "generate"),
        ("relations", 1, "generate"),
        ("headline", 1, "classify"),
        ("letter", 2, "ner"),
    }


def test_the_example_in_deploy_renders_as_its_comment_says() -> None:
    variables = {"review": "Not worth the ticket. "}
    examples = [{"review": "I laughed all evening.", "label": "good"}]
    prompt = run(lambda t: t.render("sentiment-by-example", "generate", variables, examples), DEPLOYED)
    assert prompt.text == (
        "Reviews in English and what they say.\n\nReview: I laughed all evening.\nVerdict: good\n\n"
        "Review: Not worth the ticket.\nVerdict:"
    )
    written = "".join(prompt.text[start:stop] for start, stop in prompt.template_spans)
    assert written == "Reviews in  and what they say.\n\nReview: \nVerdict: \n\nReview: \nVerdict:"
    assert (prompt.name, prompt.version, prompt.add_special_tokens) == ("sentiment-by-example", 1, True)
    assert prompt.parameters == {"max_new_tokens": 4, "stop": ["\n"]}


def test_a_name_alone_is_the_highest_version(folder: Path) -> None:
    (folder / "greeting@10.toml").write_text(GREETING.replace("Hello", "Ten"))
    (folder / "greeting@9.toml").write_text(GREETING.replace("Hello", "Nine"))
    texts = {
        reference: run(lambda t, r=reference: t.render(r, "generate", {"who": "x"}, []), folder).text  # type: ignore[misc]
        for reference in ("greeting", "greeting@9", "greeting@1")
    }
    assert texts == {"greeting": "Ten x!", "greeting@9": "Nine x!", "greeting@1": "Hello x!"}


@pytest.mark.parametrize(
    "reference",
    ["", "Greeting", "greeting@2", "greeting@", "greeting@01", "greeting@1@1", "greeting@\u0661", "greeting.toml",
     "../greeting", "/etc/passwd", "greeting\x00", "%2e%2e/greeting", "g" * 10_000, "greeting@" + "1" * 10_000],
)  # fmt: skip
def test_what_is_not_a_templates_name_is_not_found(folder: Path, reference: str) -> None:
    with pytest.raises(TemplateNotFound) as caught:
        run(lambda t: t.render(reference, "generate", {"who": "x"}, []), folder)
    assert caught.value.status == 404
    assert len(caught.value.message) < 300


def test_a_template_of_another_task_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidParameter, match="is a template for generate, not for classify"):
        run(lambda t: t.render("greeting", "classify", {"who": "x"}, []), folder)


ALL_TYPES = """
task = "generate"
text = "{{ s }}{{ i }}{{ n }}{{ b }}{{ l|join }}{{ examples }}"
[variables.s]
max_length = 3
min_length = 1
[variables.i]
type = "integer"
minimum = 0
default = 1
[variables.n]
type = "number"
maximum = 2.5
default = 1
[variables.b]
type = "boolean"
default = false
[variables.l]
type = "list"
default = []
max_items = 2
max_length = 2
[examples]
text = "{{ x }}"
max_count = 2
[examples.fields.x]
choices = ["a", "b"]
"""


@pytest.mark.parametrize(
    ("variables", "examples", "error", "param"),
    [
        ({}, [], InvalidRequest, "variables.s"),
        ({"s": None}, [], InvalidRequest, "variables.s"),
        ({"s": "a", "t": 1}, [], UnknownParameter, "variables.t"),
        ({"s": "a", "examples": "x"}, [], UnknownParameter, "variables.examples"),
        ({"s": 1}, [], InvalidParameter, "variables.s"),
        ({"s": ""}, [], InvalidParameter, "variables.s"),
        ({"s": "abcd"}, [], InvalidParameter, "variables.s"),
        ({"s": ["a"]}, [], InvalidParameter, "variables.s"),
        ({"s": "a", "i": 1.0}, [], InvalidParameter, "variables.i"),
        ({"s": "a", "i": True}, [], InvalidParameter, "variables.i"),
        ({"s": "a", "i": "1"}, [], InvalidParameter, "variables.i"),
        ({"s": "a", "i": -1}, [], InvalidParameter, "variables.i"),
        ({"s": "a", "n": 2.6}, [], InvalidParameter, "variables.n"),
        ({"s": "a", "n": True}, [], InvalidParameter, "variables.n"),
        ({"s": "a", "b": 0}, [], InvalidParameter, "variables.b"),
        ({"s": "a", "l": "ab"}, [], InvalidParameter, "variables.l"),
        ({"s": "a", "l": [1]}, [], InvalidParameter, "variables.l"),
        ({"s": "a", "l": ["a", "b", "c"]}, [], InvalidParameter, "variables.l"),
        ({"s": "a", "l": ["a", "bcd"]}, [], InvalidParameter, "variables.l.1"),
        ({"s": "a"}, [{}], InvalidRequest, "examples.0.x"),
        ({"s": "a"}, [{"x": "a"}, {"x": "c"}], InvalidParameter, "examples.1.x"),
        ({"s": "a"}, [{"x": "a", "y": "b"}], UnknownParameter, "examples.0.y"),
        ({"s": "a"}, [{"x": "a"}] * 3, InvalidParameter, "examples"),
    ],
)
def test_a_missing_unknown_or_wrong_value_is_refused_by_name(
    tmp_path: Path, variables: dict[str, Any], examples: list[dict[str, Any]], error: type[SluiceError], param: str
) -> None:
    (tmp_path / "all.toml").write_text(ALL_TYPES)
    with pytest.raises(error) as caught:
        run(lambda t: t.render("all", "generate", variables, examples), tmp_path)
    assert type(caught.value) is error
    assert caught.value.param == param
    assert param in caught.value.message
    assert caught.value.status == 422


def test_defaults_stand_where_nothing_is_given(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(ALL_TYPES)
    prompt = run(lambda t: t.render("all", "generate", {"s": "a", "b": None}, [{"x": "b"}]), tmp_path, check=True)
    assert prompt.text == "a11Falseb"


def test_examples_for_a_template_without_them_are_refused(folder: Path) -> None:
    with pytest.raises(UnknownParameter) as caught:
        run(lambda t: t.render("greeting", "generate", {"who": "x"}, [{"a": "b"}]), folder)
    assert caught.value.param == "examples"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.toml", "task = ", "not valid TOML"),
        ("a.toml", "\udcff", "not valid TOML"),
        ("a.toml", 'text = "x"', "task"),
        ("a.toml", 'task = "generate"', "text"),
        ("a.toml", 'task = "chat"\ntext = "x"', "chat"),
        ("a.toml", 'task = "ner"\ntext = "x"\ntexts = "y"', "texts"),
        ("a.toml", GREETING + 'kind = "x"', "kind"),
        ("a.toml", GREETING + 'type = "text"', "text"),
        ("a.toml", GREETING + "minimum = 1", "minimum"),
        ("a.toml", GREETING + "min_length = 5\nmax_length = 4", "min_length above its max_length"),
        ("a.toml", GREETING + "default = 5", "wrong default"),
        ("a.toml", GREETING + 'default = "x"\nchoices = ["y"]', "wrong default"),
        ("a.toml", GREETING + "[variables.Who]", "Who"),
        ("a.toml", GREETING + "[variables.examples]", "examples"),
        ("a.toml", GREETING + "[parameters]\ntemprature = 1", "temprature"),
        ("a.toml", GREETING + '[parameters]\ntop_k = "many"', "top_k"),
        ("a.toml", GREETING.replace("generate", "ner") + "[parameters]\ntop_k = 1", "parameters"),
        ("a.toml", GREETING.replace("{{ who }}", "{{ who"), "Line 1"),
        ("a.toml", GREETING.replace("who }}", "who|nonsense }}"), "nonsense"),
        ("a.toml", GREETING.replace("who }}", "whom }}"), "whom"),
        ("a.toml", GREETING.replace("who }}", "'x' }}"), "does not use who"),
        ("a.toml", GREETING.replace("who }}", "who.x.y }}"), "cannot be rendered"),
        ("a.toml", GREETING.replace("who }}", "who * 10 ** 9 }}"), "memory"),
        ("a.toml", GREETING + '[examples]\ntext = "{{ x }}"\n[examples.fields.x]', "does not use examples"),
        ("a.toml", GREETING + '[examples]\ntext = "x"', "fields"),
        ("A.toml", GREETING, "NAME.toml"),
        ("a@0.toml", GREETING, "NAME.toml"),
        ("a b.toml", GREETING, "NAME.toml"),
        ("greeting@1.toml", GREETING, "same version"),
    ],
)
def test_a_broken_template_stops_the_start_with_file_and_problem(
    folder: Path, name: str, content: str, problem: str
) -> None:
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as caught:
        run(nothing, folder, check=True)
    assert name in str(caught.value)
    assert problem in str(caught.value)


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        run(nothing, tmp_path / "nowhere")


def test_other_files_in_the_folder_are_no_templates(folder: Path) -> None:
    (folder / "README.md").write_text("words")
    (folder / "..data").mkdir()
    (folder / ".hidden.toml").write_text("broken")
    assert [entry["name"] for entry in run(nothing, folder, check=True)] == ["greeting"]


def test_without_a_folder_there_are_no_templates() -> None:
    assert run(nothing, None, check=True) == []


def test_a_template_that_cannot_take_a_value_is_the_clients_error(tmp_path: Path) -> None:
    text = GREETING.replace("{{ who }}", "{% if who == 'x' %}y{% else %}{{ who + 1 }}{% endif %}")
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InvalidRequest, match="cannot be rendered") as caught:
        run(lambda t: t.render("a", "generate", {"who": "z"}, []), tmp_path, check=True)
    assert caught.value.param == "template"


def chat(template: str | None) -> TokenizerFiles:
    return TokenizerFiles(tokenizer_json="", chat_template=template, bos_token="<s>", eos_token="</s>")


def test_a_chat_is_rendered_by_the_models_own_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = run(lambda t: t.render_chat(chat(CHATML), messages), None)
    assert prompt.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert not prompt.add_special_tokens
    assert [prompt.text[a:b] for a, b in prompt.template_spans] == [
        "<|im_start|>",
        "\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]


@pytest.mark.parametrize(
    ("template", "messages", "options", "param", "message"),
    [
        (None, [{"role": "user", "content": "x"}], {}, "messages", "no chat template"),
        (CHATML, [], {}, "messages", "1 to 1024"),
        (CHATML, [{"role": "user", "content": "x"}] * 1025, {}, "messages", "1 to 1024"),
        (LLAMA_2, [{"role": "assistant", "content": "x"}], {}, "messages", "roles must alternate"),
        (CHATML, [{"role": "user", "content": "x"}], {"messages": []}, "chat_template_kwargs.messages", "a string"),
        (CHATML, [{"role": "user", "content": "x"}], {"bos_token": "x"}, "chat_template_kwargs", "'bos_token'"),
        (QWEN_3, [{"role": "user", "content": "x"}], {"thinking": True}, "chat_template_kwargs", "enable_thinking"),
        (QWEN_3, [{"role": "user", "content": "x"}], {"x": {}}, "chat_template_kwargs.x", "a string"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_rendered_is_refused_by_name(
    template: str | None, messages: list[Any], options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        run(lambda t: t.render_chat(chat(template), messages, options), None)
    assert caught.value.param == param


def test_a_broken_chat_template_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="chat template of model m is broken: Line 1"):
        run(lambda t: t.check_chat("m", chat("{% if %}")), None)
    run(lambda t: t.check_chat("m", chat(CHATML)), None)
    run(lambda t: t.check_chat("m", chat(None)), None)


def test_templates_live_in_memory_once_they_are_read(folder: Path) -> None:
    async def work(templates: Templates) -> str:
        shutil.rmtree(folder)
        return (await templates.render("greeting", "generate", {"who": "x"}, [])).text

    assert run(work, folder) == "Hello x!"
