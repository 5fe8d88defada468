"""Send texts through a model, one or many, and write a line of JSON for each.

    sluice predict ./my-classifier "I love this" "I hate this"
    sluice predict ./my-tagger --input documents.jsonl --output entities.jsonl
    cat prompts.txt | sluice predict --url http://host:8000 --ask generate --set max_new_tokens=64

Without texts and --input they are read from standard input, one a line. A JSON line (--input FILE.jsonl, or --jsonl) is
a text; or an object with text (and text_pair), or with question and context, whose other fields come back as they are;
or a body as the task's route takes it, with inputs, messages or template. A line that fails has an error in place of
its output, and the exit code is then 1. Lines come in the order of the inputs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TextIO

from server.commands import connected as connections
from server.commands import inputs
from server.commands.clients import Clients
from server.commands.http_client import Client, Refused
from server.commands.inputs import Input
from server.commands.progress import Progress
from server.errors import ConfigurationError
from server.tasks import CLASSIFY, TASKS

PREDICTED = tuple(task.name for task in TASKS.values() if task.can_predict)
"""The tasks that this command asks for."""
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
    parser.add_argument("--input", metavar="FILE", help="A file with one text per line, or JSON lines; - reads stdin.")
    parser.add_argument("--jsonl", action="store_true", help="Read the input as JSON lines, regardless of its name.")
    parser.add_argument("--output", metavar="FILE", default="-", help="The output file. (default: stdout)")
    parser.add_argument("--ask", choices=PREDICTED, help="The task, if the server has several.")
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
        model = connections.find_model(client, options.name, options.ask)
        if model["task"] not in PREDICTED:
            raise ConfigurationError(
                f"{model['name']} is for {model['task']}: predict asks for {', '.join(PREDICTED)}."
            )
        batch = Batch(client, model, parameters)
        return _write(batch.answers(rows, options.concurrency), output, Progress("inputs", total))


def _inputs(options: Namespace, texts: list[str], stack: contextlib.ExitStack) -> tuple[Iterator[Input], int | None]:
    """The inputs, and how many there are where that is known."""
    if texts and options.input:
        raise ConfigurationError("Give texts either on the command line or with --input, not both.")
    if texts:
        return inputs.from_texts(texts), len(texts)
    if options.input in (None, "-"):
        if sys.stdin.isatty():
            sys.stderr.write("Type one text per line; end with Ctrl-D.\n")
        return inputs.from_lines(sys.stdin, is_json=options.jsonl), None
    path = Path(options.input)
    is_json = options.jsonl or path.suffix in (".jsonl", ".ndjson")
    try:
        total = inputs.count_lines(path)
        file = stack.enter_context(path.open(encoding="utf-8", errors="replace"))
        return inputs.from_lines(file, is_json=is_json), total
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

    def __init__(self, client: Client, model: dict[str, Any], parameters: dict[str, Any]) -> None:
        self._clients = Clients(client)
        self._model: str = model["name"]
        self._task: str = model["task"]
        self._parameters = parameters

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
        body = {"model": self._model, **body}
        if self._parameters:
            body["parameters"] = {**self._parameters, **(body.get("parameters") or {})}
        num_waits = 0
        while True:
            try:
                reply = self._clients.mine().post(f"/{self._task}", body)
            except Refused as error:
                num_waits += 1
                if error.status != 503 or num_waits > MAX_WAITS:
                    raise
                if self._clients.stopped.wait(error.retry_after_s or WAIT_S):
                    raise
            else:
                # The route answers with a list of texts, though it was one.
                return reply[0] if self._task == CLASSIFY.name and not isinstance(body.get("inputs"), list) else reply
