"""List the models that a server serves, or the model folders that lie in a folder.

    sluice models ./models
    sluice models --url http://host:8000

A folder that cannot be served has the reason in its line.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from server.commands import connected as connections
from server.commands.http_client import DEFAULT_URL, Client
from server.commands.terminal import count, size, table
from server.errors import ConfigurationError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="A model folder, or a folder with model folders.")
    parser.add_argument("--url", metavar="URL", help=f"A running server. (default without a folder: {DEFAULT_URL})")
    parser.add_argument("--api-key", metavar="KEY", help=f"The API key; or {connections.KEY_VARIABLE}.")
    parser.add_argument("--json", action="store_true", help="Print a JSON list.")


def run(options: Namespace) -> int:
    if options.folder and options.url:
        raise ConfigurationError(f"{options.folder} and --url name two places. Give only one.")
    models = _in_folder(Path(options.folder)) if options.folder else _served(options)
    if options.json:
        print(json.dumps(models, indent=2))
    elif models:
        print("\n".join(table([COLUMNS, *(_row(model) for model in models)], right=(4, 5))))
    return 0


COLUMNS = ("name", "task", "architecture", "dtype", "parameters", "size", "notes")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    return (
        model["name"],
        model.get("task") or "-",
        model.get("architecture") or "-",
        model.get("dtype") or "-",
        count(model["num_parameters"]) if model.get("num_parameters") else "-",
        size(model["weight_bytes"]) if model.get("weight_bytes") else "-",
        model["notes"],
    )


def _served(options: Namespace) -> list[dict[str, Any]]:
    client = Client(options.url or DEFAULT_URL, options.api_key or os.environ.get(connections.KEY_VARIABLE))
    facts = ("name", "task", "architecture", "dtype", "num_parameters", "weight_bytes", "state")
    found = []
    for model in client.get("/info")["models"]:
        described = {name: model[name] for name in facts if name in model}
        notes = [model["state"], f"{model['executor']} on {model['device']}" if "executor" in model else ""]
        if "shares_worker_of" in model:
            described |= {"weight_bytes": model["adapter_bytes"], "digest": model["adapter_digest"]}
            notes = [f"adapter of {model['shares_worker_of']}", model["adapter_state"]]
        found.append({**described, "notes": ", ".join(filter(None, notes))})
    client.close()
    return found


def _in_folder(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder. Give a folder with model folders.")
    from server.commands.model_folders import describe, is_model_folder

    folders = [folder] if is_model_folder(folder) else sorted(filter(is_model_folder, folder.iterdir()))
    if not folders:
        raise ConfigurationError(f"{folder} contains no model folders (with config.json or adapter_config.json).")
    return [describe(path) for path in folders]
