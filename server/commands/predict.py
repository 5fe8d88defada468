"""Send texts through a model, one or many, and write a line of JSON for each.

    sluice predict ./my-classifier "I love this" "I hate this"
    sluice predict ./my-tagger --input documents.jsonl --output entities.jsonl
    sluice predict ./my-translator --input rows.csv --column title --set src_lang=en --set tgt_lang=de
    cat prompts.txt | sluice predict --url http://host:8000 --ask generate --set max_new_tokens=64

Without texts and --input they are read from standard input, one a line. A JSON line (--input FILE.jsonl, or --jsonl) is
a text; or an object with text (and text_pair), or with question and context, whose other fields come back as they are;
or a body as the task's route takes it, with inputs, messages or template. A row of a .csv or .tsv file is such an
object. --column names another field that holds the text. A line that fails has an error in place of its output, and the
exit code is then 1. Lines come in the order of the inputs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from server.commands import connected as connections
from server.commands import inputs
from server.commands.clients import Clients
from server.commands.http_client import Client, Refused
from server.commands.inputs import Input
from server.commands.progress import Progress
from server.errors import ConfigurationError
from server.tasks import TASKS, Task

ASKS = tuple(dict.fromkeys(word for task in TASKS.values() for word in task.asks))
"""What this command can ask for."""
TABLES = (".csv", ".tsv")
MAX_WAITS = 20
"""A server that is full or restarting is asked so many times more."""
WAIT_S = 1.0
READ_AHEAD = 4
"""Inputs that are read before their turn, for each request at once."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s (MODEL-FOLDER | --url URL) [TEXT ...] [--input FILE] [--output FILE] [flags, all below]"
    parser.add_argument(
        "words", nargs="*", metavar="MODEL-FOLDER TEXT", help="A model folder (omit it with --url), then texts."
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="A file with one text per line, JSON lines or a table (.csv, .tsv); - reads stdin.",
    )
    parser.add_argument("--jsonl", action="store_true", help="Read the input as JSON lines, regardless of its name.")
    parser.add_argument(
        "--column", metavar="NAME", help="The field of a row or JSON line with the text. (default: text)"
    )
    parser.add_argument("--output", metavar="FILE", default="-", help="The output file. (default: stdout)")
    parser.add_argument("--ask", choices=ASKS, help="The task, if the server or the model has several.")
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="A parameter of the route, such as top_k=1."
    )
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="Concurrent requests. (default: 8)")
    connections.add_arguments(parser)


def run(options: Namespace) -> int:
    if options.concurrency < 1:
        raise ConfigurationError(f"--concurrency is {options.concurrency}: it must be at least 1.")
    parameters = connections.assignments(options.set)
    folder, texts = (None, options.words) if options.url else (next(iter(options.words), None), options.words[1:])
    if folder is None and not options.url:
        raise ConfigurationError("Give a model folder first, or --url of a running server.")
    with contextlib.ExitStack() as stack:
        rows, total = _inputs(options, texts, stack)
        output = _output(options.output, stack)
        client = stack.enter_context(connections.connected(options, folder))
        ask = options.ask or ""
        tasks = [task.name for task in TASKS.values() if ask in task.asks]
        model = connections.find_model(client, options.name, tasks, ask)
        task = TASKS.get(model["task"])
        if task is None or not task.asks:
            raise ConfigurationError(f"{model['name']} is for {model['task']}: predict asks for {', '.join(ASKS)}.")
        batch = Batch(client, options.name and model["name"], task, ask or _usual_ask(task, model), parameters)
        return _write(batch.answers(rows, options.concurrency), output, Progress("inputs", total))


def _usual_ask(task: Task, model: dict[str, Any]) -> str:
    """The first one that the server does not say the model cannot do."""
    return next((word for word in task.asks if model.get(f"can_{word}", True)), task.asks[0])


def _inputs(options: Namespace, texts: list[str], stack: contextlib.ExitStack) -> tuple[Iterator[Input], int | None]:
    """The inputs, and how many there are where that is known."""
    if texts and options.input:
        raise ConfigurationError("Give texts either on the command line or with --input, not both.")
    path = None if options.input in (None, "-") else Path(options.input)
    suffix = path.suffix.lower() if path else ""
    is_table, is_json = suffix in TABLES, options.jsonl or suffix in (".jsonl", ".ndjson")
    if options.column is not None and (texts or not (is_table or is_json)):
        raise ConfigurationError("--column requires JSON lines, or --input of a .csv or .tsv file.")
    if is_table and is_json:
        raise ConfigurationError(f"--jsonl does not fit {path}, which is a table. Remove it, or rename the file.")
    if texts:
        return inputs.from_texts(texts), len(texts)
    if path is None:
        if sys.stdin.isatty():
            sys.stderr.write("Type one text per line; end with Ctrl-D.\n")
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        return inputs.from_lines(sys.stdin, is_json=is_json, column=options.column), None
    try:
        total = inputs.count_lines(path)
        if is_table:
            return inputs.from_table(path, options.column)
        file = stack.enter_context(path.open(encoding="utf-8", errors="surrogateescape"))
        return inputs.from_lines(file, is_json=is_json, column=options.column), total
    except OSError as error:
        raise ConfigurationError(f"{options.input} cannot be read: {error.strerror}.") from None


def _output(name: str, stack: contextlib.ExitStack) -> TextIO:
    if name == "-":
        return sys.stdout
    try:
        return stack.enter_context(Path(name).open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written: {error.strerror}.") from None


def _write(lines: Iterable[dict[str, Any]], output: TextIO, progress: Progress) -> int:
    num_failed = 0
    try:
        for line in lines:
            num_failed += "error" in line
            output.write(json.dumps(line, ensure_ascii=output is sys.stdout and not _is_utf8(output)) + "\n")
            output.flush()
            progress.advance()
    finally:
        progress.finish()
    if num_failed:
        sys.stderr.write(f"{num_failed} inputs failed; see their lines.\n")
    return 1 if num_failed else 0


def _is_utf8(file: TextIO) -> bool:
    return (file.encoding or "").lower().replace("-", "") == "utf8"


class Batch:
    """Asks for many inputs at once and answers in their order."""

    def __init__(self, client: Client, model: str | None, task: Task, ask: str, parameters: dict[str, Any]) -> None:
        """``model``: its name; None leaves the choice to the server, which knows each model's languages."""
        self._clients = Clients(client)
        self._task = task
        self._path = f"/{ask}"
        self._fields: dict[str, Any] = {"model": model} if model else {}
        self._fields |= {name: value for name, value in parameters.items() if name in task.beside}
        self._parameters = {name: value for name, value in parameters.items() if name not in task.beside}

    def answers(self, rows: Iterator[Input], concurrency: int) -> Iterator[dict[str, Any]]:
        """A line for each input. No more are read ahead than can be asked for soon."""
        waiting: deque[Future[dict[str, Any]]] = deque()
        with self._clients.pool(concurrency) as pool:
            for row in rows:
                waiting.append(pool.submit(self._line, row))
                while waiting and (len(waiting) >= READ_AHEAD * concurrency or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _line(self, row: Input) -> dict[str, Any]:
        value, body = row
        if isinstance(body, str):
            return {"input": value, "error": {"message": body, "code": "invalid_input"}}
        try:
            return {"input": value, "output": self._ask(body)}
        except Refused as error:
            if not error.status:
                raise
            return {"input": value, "error": {"message": str(error), "code": error.code, "status": error.status}}

    def _ask(self, body: dict[str, Any]) -> Any:
        body = {**self._fields, **body}
        if self._parameters:
            body["parameters"] = {**self._parameters, **(body.get("parameters") or {})}
        num_waits = 0
        while True:
            try:
                reply = self._clients.mine().post(self._path, body)
            except Refused as error:
                num_waits += 1
                if error.status != 503 or num_waits > MAX_WAITS:
                    raise
                if self._clients.stopped.wait(error.retry_after_s or WAIT_S):
                    raise
            else:
                return reply[0] if self._task.lists_one and not isinstance(body.get("inputs"), list) else reply
