"""Which server a command speaks with: one that runs, or one of its own over a model folder."""

from __future__ import annotations

import contextlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from server import settings
from server.commands.http_client import DEFAULT_URL, Client
from server.commands.own_server import own_server
from server.errors import ConfigurationError
from server.tasks import TASKS

KEY_VARIABLE = "SLUICE_API_KEY"


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that choose the server and the model."""
    parser.add_argument("--url", metavar="URL", help=f"A running server. (default without a folder: {DEFAULT_URL})")
    parser.add_argument("--name", metavar="NAME", help="The model to use, if the server has several for the task.")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"The API key. Prefer the variable {KEY_VARIABLE}: other users can see command lines.",
    )
    settings.add_model_flags(parser, "Of the server that the command starts for a model folder.")


@contextlib.contextmanager
def connected(options: Namespace, folder: str | None) -> Iterator[Client]:
    """A client of a server that is there; one that was started for it is gone afterwards."""
    key = options.api_key or os.environ.get(KEY_VARIABLE)
    flags = settings.flags_of(options)
    if folder is None:
        if flags:
            raise ConfigurationError(
                f"{flags[0]} applies only to a server that this command starts. Give a model folder, or remove it."
            )
        with contextlib.closing(Client(options.url or DEFAULT_URL, key)) as client:
            yield client
        return
    if options.url:
        raise ConfigurationError(f"{folder} and --url name two servers. Give only one.")
    with own_server(folder, flags) as url, contextlib.closing(Client(url)) as client:
        yield client


def find_model(client: Client, name: str | None, tasks: Collection[str] = (), wanted: str = "") -> dict[str, Any]:
    """What the server says of the model to ask: the one of that name, or the first of the tasks.

    ``wanted``: what they do, in one word.
    """
    models = [model for model in client.get("/info")["models"] if "task" in model]
    fitting = [model for model in models if name in (None, model["name"]) and (not tasks or model["task"] in tasks)]
    found = {model["task"] for model in fitting}
    if len(found) > 1 and not tasks:
        words = sorted({word for task in found for word in _words(task)})
        raise ConfigurationError(
            f"{client.url} has models for {', '.join(words)}. Say which with --ask, or name a model with --name."
        )
    if fitting:
        return dict(fitting[0])
    served = ", ".join(f"{model['name']} ({model['task']})" for model in models) or "none"
    wanted = " ".join(filter(None, ("model", name, f"for {wanted}" if wanted else "")))
    raise ConfigurationError(f"{client.url} has no {wanted}. It has: {served}.")


def _words(task: str) -> tuple[str, ...]:
    """What a model's task is called for ``--ask``; a newer server may have others."""
    return (TASKS[task].asks if task in TASKS else ()) or (task,)


def assignments(words: list[str] | None) -> dict[str, Any]:
    """Parameters from ``NAME=VALUE``."""
    found = {}
    for word in words or []:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"{word} is not NAME=VALUE, such as temperature=0.7.")
        found[name.strip()] = value_of(text)
    return found


def value_of(text: str) -> Any:
    """A parameter's value: JSON, or else the text itself.

    >>> value_of("0.7"), value_of("true"), value_of("[1, 2]"), value_of("softmax")
    (0.7, True, [1, 2], 'softmax')
    """
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def folder_name(folder: str) -> str:
    """What a folder's model is called.

    >>> folder_name("models/llama/"), folder_name("chat=models/llama")
    ('llama', 'chat')
    """
    name, equals, _ = folder.partition("=")
    return name if equals else Path(folder).resolve().name
