"""Texts in, JSON lines out: in order, whatever fails, from wherever they come."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.commands.fake_server import fake_server
from tests.commands.processes import COMMAND, environment, on_terminal, run
from tests.server_process import ServerProcess


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_texts_of_the_command_line_are_answered_in_order():
    with fake_server() as server:
        done = run("predict", "--url", server.url, "one", "你好 😀", "--set", "max_new_tokens=3")
    assert lines(done.stdout) == [
        {"input": "one", "output": {"generated_text": "<one>"}},
        {"input": "你好 😀", "output": {"generated_text": "<你好 😀>"}},
    ]
    assert "你好 😀" in done.stdout
    assert all(body["parameters"] == {"max_new_tokens": 3} for body in server.bodies)
    assert "2 inputs in" in done.stderr


def test_a_json_line_is_a_text_an_object_with_text_or_a_body_and_comes_back_whole(tmp_path: Path):
    rows = ["a", {"text": "b", "id": 7}, {"inputs": "c", "parameters": {"seed": 1}}]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    with fake_server() as server:
        out = tmp_path / "out.jsonl"
        done = run("predict", "--url", server.url, "--input", path, "--output", out, "--set", "seed=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = lines(out.read_text())
    assert [line["input"] for line in found] == rows
    assert [line["output"]["generated_text"] for line in found] == ["<a>", "<b>", "<c>"]
    assert {body["inputs"]: body["parameters"]["seed"] for body in server.bodies} == {"a": 0, "b": 0, "c": 1}


def test_a_line_that_fails_has_its_error_and_the_others_are_answered():
    stdin = '"a"\nnot json\n{"no": "text"}\n"b"\n'
    with fake_server(refusals=[(422, "invalid_value", "Not this one.")]) as server:
        done = run("predict", "--url", server.url, "--jsonl", "--concurrency", "1", stdin=stdin)
    refused, broken, empty, good = lines(done.stdout)
    assert refused == {"input": "a", "error": {"message": "Not this one.", "code": "invalid_value", "status": 422}}
    assert broken["input"] == "not json"
    assert "Line 2 is not JSON" in broken["error"]["message"]
    assert "Line 3 must be a string or an object" in empty["error"]["message"]
    assert good["output"] == {"generated_text": "<b>"}
    assert done.returncode == 1
    assert "3 inputs failed" in done.stderr


TRANSLATORS = [{"name": name, "task": "seq2seq"} for name in ("en-pt", "pt-en")]


def test_a_column_of_a_table_is_translated_and_its_rows_come_back_whole(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffid;title\n1;"a; ""mill"""\n\n2;"two\nlines"\n')
    words = ["--input", path, "--column", "title", "--set", "src_lang=en", "--set", "split=sentences"]
    with fake_server(models=TRANSLATORS) as server:
        done = run("predict", "--url", server.url, *words)
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == [
        {"input": {"id": "1", "title": 'a; "mill"'}, "output": {"generated_text": '<a; "mill">'}},
        {"input": {"id": "2", "title": "two\nlines"}, "output": {"generated_text": "<two\nlines>"}},
    ]
    assert server.paths == ["/translate"] * 2
    # The server chooses the model, for it knows the languages of each.
    assert {"inputs": "two\nlines", "parameters": {"src_lang": "en"}, "split": "sentences"} in server.bodies


def test_a_field_of_json_lines_is_summarized_by_the_model_of_that_name():
    stdin = '{"body": "a", "id": 7}\n{"text": "b"}\n{"body": 5}\n'
    with fake_server(models=TRANSLATORS) as server:
        flags = ["--url", server.url, "--name", "pt-en", "--ask", "summarize", "--jsonl", "--column", "body"]
        done = run("predict", *flags, stdin=stdin)
    first, *others = lines(done.stdout)
    assert first == {"input": {"body": "a", "id": 7}, "output": {"generated_text": "<a>"}}
    assert [line["error"]["message"] for line in others] == [f"Line {n} has no text named body." for n in (2, 3)]
    assert (server.paths, server.bodies) == (["/summarize"], [{"model": "pt-en", "inputs": "a"}])


def test_a_model_that_only_summarizes_is_asked_for_summaries():
    models = [{"name": "short", "task": "seq2seq", "can_translate": False, "can_summarize": True}]
    with fake_server(models=models) as server:
        run("predict", "--url", server.url, "a")
    assert server.paths == ["/summarize"]


def test_a_table_without_options_has_the_usual_columns(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text("question\tcontext\nWho?\tAnn\n")
    with fake_server() as server:
        done = run("predict", "--url", server.url, "--input", path)
    assert done.returncode == 0, done.stderr
    assert server.bodies == [{"inputs": {"question": "Who?", "context": "Ann"}}]


def test_a_server_that_is_full_is_asked_again():
    with fake_server(refusals=[(503, "queue_full", "Full.")] * 3) as server:
        done = run("predict", "--url", server.url, "a")
    assert lines(done.stdout) == [{"input": "a", "output": {"generated_text": "<a>"}}]
    assert len(server.bodies) == 4


def test_more_texts_than_requests_at_once_keep_their_order():
    texts = [f"text {number}" for number in range(200)]
    with fake_server() as server:
        done = run("predict", "--url", server.url, "--concurrency", "7", stdin="\n".join(texts))
    assert [line["input"] for line in lines(done.stdout)] == texts
    assert [line["output"]["generated_text"] for line in lines(done.stdout)] == [f"<{text}>" for text in texts]


def test_each_task_of_a_real_server_is_asked_for_by_name(tiny_server: ServerProcess):
    told = run("predict", "--url", tiny_server.url, "Bob")
    assert told.returncode == 2
    assert "has models for classify, generate, ner. Say which with --ask" in told.stderr
    (mood,) = lines(run("predict", "--url", tiny_server.url, "--ask", "classify", "--set", "top_k=1", "Bob").stdout)
    (label,) = mood["output"]
    assert label["label"] in ("negative", "neutral", "positive")
    (names,) = lines(run("predict", "--url", tiny_server.url, "--name", "names", "Bob met Maria").stdout)
    assert all({"word", "start", "end"} <= entity.keys() for entity in names["output"])
    (text,) = lines(run("predict", "--url", tiny_server.url, "--ask", "generate", "Bob").stdout)
    assert isinstance(text["output"]["generated_text"], str)


def test_a_model_folder_is_served_for_as_long_as_it_takes(tiny_classifier: Path):
    done = run("predict", tiny_classifier, "Bob", "Maria")
    assert done.returncode == 0, done.stderr
    assert [len(line["output"]) for line in lines(done.stdout)] == [3, 3]
    assert "Loading" in done.stderr


def test_a_reader_that_leaves_early_ends_it_without_a_trace_back():
    texts = "\\n".join(str(number) for number in range(2000))
    with fake_server() as server:
        command = f"printf '{texts}' | {' '.join(COMMAND)} predict --url {server.url} | head -n 1"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env=environment())
    assert json.loads(done.stdout)["input"] == "0"
    assert "Traceback" not in done.stderr


def test_a_terminal_shows_a_bar_and_a_log_has_lines(tmp_path: Path):
    texts = tmp_path / "in.txt"
    texts.write_text("a\n" * 10)
    with fake_server(pause_s=0.2) as server:
        words = ["predict", "--url", server.url, "--input", texts, "--output", tmp_path / "out", "--concurrency", "1"]
        with on_terminal(*words) as terminal:
            terminal.wait_for("[######........................] 2 of 10 inputs, ")
            assert terminal.wait() == 0
        log = run(*words).stderr
    assert "\r\x1b[K10 inputs in " in terminal.shown
    assert log.startswith("10 inputs in ")
    assert "\x1b" not in log


def test_what_is_missing_is_said_in_one_line(tmp_path: Path):
    table = tmp_path / "rows.csv"
    table.write_text("a,b\n1,2\n")
    for words, message in (
        ((), "Give a model folder first, or --url of a running server."),
        (("nowhere", "text"), "nowhere is not a folder. Give the path of a model folder, or --url of a server."),
        (
            ("--url", "http://x", "--dtype", "float32", "a"),
            "--dtype applies only to a server that this command starts.",
        ),
        (("--url", "http://x", "--input", "nowhere.txt"), "nowhere.txt cannot be read: No such file or directory."),
        (
            ("--url", "http://x", "--column", "b", "a"),
            "--column requires JSON lines, or --input of a .csv or .tsv file.",
        ),
        (("--url", "http://x", "--input", table), f"{table} has no column text. It has: a, b. Name one with --column."),
        (("--url", "http://x", "--input", table, "--column", "c"), f"{table} has no column c. It has: a, b."),
        (("--url", "http://x", "--input", table, "--jsonl"), f"--jsonl does not fit {table}, which is a table."),
        (("--url", "http://x", "--set", "seed", "a"), "seed is not NAME=VALUE, such as temperature=0.7."),
    ):
        done = run("predict", *words)
        assert done.returncode in (2, 4)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
