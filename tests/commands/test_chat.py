"""A conversation in the terminal, as a person has it and as a script has it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.fake_server import fake_server
from tests.commands.processes import on_terminal, run

COLOUR = re.compile(r"\x1b\[[\d;]*m")
QUESTION = {"role": "user", "content": "Hi"}


def test_an_answer_is_streamed_in_colours_with_its_pace_and_the_next_question_has_it_before_it():
    with fake_server() as server, on_terminal("chat", "--url", server.url) as terminal:
        place = terminal.answer("Hi\n")
        place = terminal.wait_for("Hello!", after=place)
        terminal.wait_for("3 tokens, 10.0 tokens/s, first after 0.50 s", after=place)
        place = terminal.answer("你好 😀\n")
        terminal.wait_for("Hello!", after=place)
        terminal.answer("/quit\n")
        assert terminal.wait() == 0
        assert COLOUR.search(terminal.shown)
    first, second = server.bodies
    assert first == {"model": "chat", "messages": [QUESTION], "parameters": {}, "stream": True}
    assert second["messages"] == [
        QUESTION,
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "你好 😀"},
    ]


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_where_they_are_not_wanted(env: dict[str, str]):
    with fake_server() as server, on_terminal("chat", "--url", server.url, env=env) as terminal:
        terminal.answer("Hi\n")
        terminal.wait_for("tokens/s")
        terminal.answer("\x04")
        assert terminal.wait() == 0
        assert not COLOUR.search(terminal.shown)


def test_ctrl_c_stops_the_answer_and_not_the_program_and_what_came_is_kept():
    words = [f"word{number} " for number in range(1000)]
    with (
        fake_server(words=words, pause_s=0.05) as server,
        on_terminal("chat", "--url", server.url) as terminal,
    ):
        terminal.answer("Hi\n")
        terminal.wait_for("word3")
        terminal.type("\x03")
        terminal.wait_for("stopped")
        server.words, server.pause_s = ["Yes."], 0.0
        place = terminal.answer("again\n")
        terminal.wait_for("Yes.", after=place)
        place = terminal.place = terminal.wait_for("> ", after=place)
        terminal.press_until("\x03", "Use /quit or Ctrl-D to quit.", after=place)
        terminal.answer("/quit\n")
        assert terminal.wait() == 0
    answer = server.bodies[1]["messages"][1]
    assert answer["role"] == "assistant"
    assert answer["content"].startswith("word0 word1 word2 ")


def test_a_message_may_have_several_lines():
    with fake_server() as server, on_terminal("chat", "--url", server.url) as terminal:
        place = terminal.answer("one\\\n")
        terminal.wait_for(". ", after=place)
        terminal.type("two\n")
        place = terminal.answer('"""a\n\n  b"""\n')
        terminal.wait_for("tokens/s", after=place)
        terminal.answer("/quit\n")
        assert terminal.wait() == 0
    assert [body["messages"][-1]["content"] for body in server.bodies] == ["one\ntwo", "a\n\n  b"]


def test_commands_change_what_is_asked(tmp_path: Path):
    script = f"""
        /system Be short.
        /set temperature 0.7
        /set stop ["x"]
        Hi
        /regenerate
        /unset stop
        /save {tmp_path}/talk.json
        /save {tmp_path}/talk.json
        /reset
        /system
        Ho
    """
    with fake_server() as server:
        done = run("chat", "--url", server.url, stdin="\n".join(line.strip() for line in script.splitlines()))
    first, again, last = server.bodies
    assert first["messages"] == [{"role": "system", "content": "Be short."}, QUESTION]
    assert first["parameters"] == {"temperature": 0.7, "stop": ["x"]}
    assert again == first
    assert last["messages"] == [{"role": "user", "content": "Ho"}]
    assert last["parameters"] == {"temperature": 0.7}
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"] == [*first["messages"], {"role": "assistant", "content": "Hello!"}]
    assert "already exists" in done.stderr
    assert done.stdout == "Hello!\n" * 3


def test_a_script_gets_answers_on_stdout_and_everything_else_on_stderr():
    with fake_server(refusals=[(422, "invalid_value", "temperature is too hot.")]) as server:
        done = run("chat", "--url", server.url, stdin="Hi\n/rest\nHi\n")
    assert done.stdout == "Hello!\n"
    assert "temperature is too hot." in done.stderr
    assert "Unknown command /rest. Did you mean /reset?" in done.stderr
    assert "tokens/s" in done.stderr
    assert done.returncode == 1
    # A question that was refused is not asked again with the next one.
    assert [body["messages"] for body in server.bodies] == [[QUESTION], [QUESTION]]


def test_an_answer_stays_where_no_other_comes_in_its_place(tmp_path: Path):
    with fake_server(refuse_from=1) as server:
        done = run("chat", "--url", server.url, stdin=f"Hi\n/regenerate\n/save {tmp_path}/talk.json\n")
    assert "The server is full." in done.stderr
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"] == [QUESTION, {"role": "assistant", "content": "Hello!"}]


def test_a_conversation_that_is_too_long_is_told_what_to_do():
    with fake_server(refusals=[(422, "context_length_exceeded", "Too long.")]) as server:
        done = run("chat", "--url", server.url, stdin="Hi\n")
    assert "Too long. Use /reset to start over." in done.stderr


def test_an_answer_that_breaks_off_is_shown_as_one():
    with fake_server(breaks_after=3) as server:
        done = run("chat", "--url", server.url, stdin="Hi\n")
    assert done.stdout == "Hello\n"
    assert "broken off" in done.stderr


def test_what_a_model_writes_cannot_move_the_cursor():
    with fake_server(words=["a\x1b[2J\x07b\nc\x9b5m"]) as server:
        done = run("chat", "--url", server.url, stdin="Hi\n")
    assert done.stdout == "a[2Jb\nc5m\n"


def test_a_server_that_is_not_there_is_one_plain_line():
    with fake_server() as server:
        url = server.url
    done = run("chat", "--url", url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"sluice: No server responds at {url}: connection refused.")
    assert done.stderr.count("\n") == 1


def test_a_key_is_sent_and_several_models_are_told_apart():
    other = {"name": "other", "task": "generate", "state": "ready"}
    with fake_server() as server:
        server.models.append(other)
        done = run("chat", "--url", server.url, "--name", "other", stdin="Hi\n", SLUICE_API_KEY="secret")
        assert done.returncode == 0, done.stderr
        wrong = run("chat", "--url", server.url, "--name", "third")
    assert server.bodies[0]["model"] == "other"
    assert server.keys[0] == "Bearer secret"
    assert "has no model third for generate. It has: chat (generate), other (generate)." in wrong.stderr
