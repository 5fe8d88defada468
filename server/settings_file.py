"""The TOML file of settings: read, checked key by key, with what was probably meant where a key is unknown."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from server.settings import Setting

OWN = ("name", "path")
"""Fields of a model that no setting for all models can have."""
FOLDERS = ("templates", "topics", "adapters", "watched_adapters")
"""Settings of the server that are folders."""


def read_file(path: Path, known: Mapping[str, Setting]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The file's settings under their field names, and its models' tables; paths are relative to the file's folder."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise ConfigurationError(f"The configuration file {path} is nested too deeply.") from None
    tables = content.pop("models", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{path}: models is a list of tables: write [[models]].")
    found = _checked(content, known, str(path))
    for name in ("base", "api_keys_file", *FOLDERS):
        if name in found:
            found[name] = _beside(path, found[name])
    per_model = {name: setting for name, setting in known.items() if setting.per_model}
    return found, [_table(table, per_model, path, number) for number, table in enumerate(tables, start=1)]


def _table(table: dict[str, Any], per_model: dict[str, Setting], path: Path, number: int) -> dict[str, Any]:
    where = f"{path}: [[models]] number {number}"
    own = dict.fromkeys(OWN, dataclasses.replace(per_model["base"], choices=()))
    found = _checked(table, {**own, **per_model}, where)
    if "path" not in found:
        raise ConfigurationError(f'{where} lacks path: add path = "FOLDER".')
    for name in ("path", "base"):
        if name in found:
            found[name] = _beside(path, found[name])
    return {"name": Path(found["path"]).resolve().name, **found}


def _checked(content: Mapping[str, Any], known: Mapping[str, Setting], where: str) -> dict[str, Any]:
    found = {}
    for key, value in content.items():
        if key not in known:
            raise ConfigurationError(f"{where}: unknown setting {key}.{did_you_mean(key, known)}")
        found[key] = known[key].checked(value, f"{where}: {key}")
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the nearest of the known words, or nothing.

    >>> did_you_mean("prot", ["host", "port"])
    ' Did you mean port?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _beside(file: Path, path: str) -> str:
    return os.path.normpath(file.parent / Path(path).expanduser())
