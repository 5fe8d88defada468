"""Fills the configuration: flags before environment before TOML file before defaults.

Everything is read off the dataclasses in `server.config`: the field ``max_running`` is the flag ``--max-running``,
the variable ``SLUICE_MAX_RUNNING`` and the key ``max_running`` in the file. A setting of a model counts for every
model, unless the model's own ``[[models]]`` table says otherwise.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_MODEL, ConfigurationError

PREFIX = "SLUICE_"
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_OWN = ("name", "path")
"""Fields of a model that no setting for all models can have."""
_FOLDERS = ("templates", "topics")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the configuration, as flag, variable and key."""

    name: str
    kind: type
    choices: tuple[str, ...]
    default: Any
    help: str
    per_model: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def from_text(self, text: str, origin: str) -> Any:
        """The value that a flag or a variable holds as text. Raises `ConfigurationError` that names ``origin``."""
        try:
            value = _BOOLEANS[text.strip().lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise self._wrong(text, origin) from None
        return self.checked(value, origin)

    def checked(self, value: Any, origin: str) -> Any:
        """``value`` if the field can hold it. Raises `ConfigurationError` that names ``origin``."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind or (self.choices and value not in self.choices):
            raise self._wrong(value, origin)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(value, origin)
        return value

    def _wrong(self, value: Any, origin: str) -> ConfigurationError:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        wanted = "one of " + ", ".join(self.choices) if self.choices else kinds[self.kind]
        return ConfigurationError(f"{origin} is {value!r}: it must be {wanted}.")


@functools.cache
def settings() -> dict[str, Setting]:
    """All of them, by field name, in the order of the dataclasses."""
    found = {}
    for owner, left_out in ((ServeConfig, ("models",)), (ModelConfig, _OWN)):
        hints, helps = get_type_hints(owner), field_docstrings(owner)
        for field in dataclasses.fields(owner):
            if field.name not in left_out:
                kind, choices = _kind(hints[field.name])
                found[field.name] = Setting(
                    name=field.name,
                    kind=kind,
                    choices=choices,
                    default=field.default,
                    help=helps[field.name],
                    per_model=owner is ModelConfig,
                )
    return found


def field_docstrings(owner: type) -> dict[str, str]:
    """The text under each field of a dataclass: Python keeps it in the source only."""
    body = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    if isinstance(hint, type):
        return hint, ()
    (kind,) = (member for member in get_args(hint) if member is not type(None))
    return kind, ()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser a flag for every setting; values stay text until `load`."""
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME=PATH",
        help="A model folder to serve and its name (PATH alone: the folder's name). Repeatable; the first of a task is "
        f"its default. Replaces the file's models. In {PREFIX}MODEL separated by commas.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"A TOML file with any of these settings and [[models]]. Or {PREFIX}CONFIG."
    )
    server = parser.add_argument_group("server", f"Each has a variable too: --port is {PREFIX}PORT.")
    models = parser.add_argument_group(
        "models", "For every model whose [[models]] table in the file does not say otherwise."
    )
    for setting in settings().values():
        shown = setting.help.replace("``", "").replace("%", "%%")
        if setting.default not in (None, ""):
            shown += f" (default: {str(setting.default).lower() if setting.kind is bool else setting.default})"
        group = models if setting.per_model else server
        if setting.kind is bool:
            group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=None, help=shown)
        else:
            metavar = "{" + ",".join(setting.choices) + "}" if setting.choices else setting.kind.__name__.upper()
            group.add_argument(setting.flag, metavar=metavar, default=None, help=shown)


def load(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServeConfig:
    """The configuration that flags, environment and file together make. Raises `ConfigurationError`."""
    _refuse_misspelt(environment)
    path = options.config or environment.get(PREFIX + "CONFIG")
    file = _read(Path(path)) if path else {}
    tables = file.pop("models", [])
    general = {**file, **_from_environment(environment), **_from_flags(options)}
    named = options.model or [text for text in environment.get(PREFIX + "MODEL", "").split(",") if text.strip()]
    if named:
        tables = [_named(text.strip()) for text in named]
    for_models = {name: value for name, value in general.items() if settings()[name].per_model}
    models = tuple(ModelConfig(**{**for_models, **table}) for table in tables)
    config = ServeConfig(
        models=models, **{name: value for name, value in general.items() if not settings()[name].per_model}
    )
    _check_folders(config)
    return config


def _from_flags(options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for setting in settings().values():
        value = getattr(options, setting.name, None)
        if value is not None:
            found[setting.name] = value if setting.kind is bool else setting.from_text(value, setting.flag)
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for setting in settings().values():
        text = environment.get(setting.variable, "")
        # Kubernetes sets SLUICE_PORT to a URL in every pod beside a Service called "sluice": not meant for us.
        if text and not (setting.name == "port" and text.startswith("tcp://")):
            found[setting.name] = setting.from_text(text, setting.variable)
    return found


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    """A variable that is almost one of ours is a mistake; others (Kubernetes has many) are not ours to judge."""
    known = {setting.variable for setting in settings().values()} | {PREFIX + "MODEL", PREFIX + "CONFIG"}
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.9)
            if near:
                raise ConfigurationError(f"There is no variable {variable}. Did you mean {near[0]}?")


def _read(path: Path) -> dict[str, Any]:
    """The file's settings, checked, under their field names; its models' paths made relative to the file's folder."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"The configuration file {path} is not valid TOML: {error}.") from None
    tables = content.pop("models", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{path}: models is a list of tables: write [[models]].")
    found = _checked(content, settings(), str(path))
    per_model = {name: setting for name, setting in settings().items() if setting.per_model}
    found["models"] = [_table(table, per_model, path, number) for number, table in enumerate(tables, start=1)]
    for name in ("base", *_FOLDERS):
        if name in found:
            found[name] = _beside(path, found[name])
    return found


def _table(table: dict[str, Any], per_model: dict[str, Setting], path: Path, number: int) -> dict[str, Any]:
    where = f"{path}: [[models]] number {number}"
    own = dict.fromkeys(_OWN, dataclasses.replace(per_model["base"], choices=()))
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
            raise ConfigurationError(f"{where}: there is no setting {key}.{did_you_mean(key, known)}")
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


def _named(text: str) -> dict[str, Any]:
    """``NAME=PATH``, or a path alone, whose last part is the name.

    >>> _named("chat=models/llama"), _named("models/llama")
    ({'name': 'chat', 'path': 'models/llama'}, {'name': 'llama', 'path': 'models/llama'})
    """
    name, equals, path = text.partition("=")
    if not equals or os.sep in name:
        name, path = Path(text).resolve().name, text
    return {"name": name, "path": str(Path(path).expanduser()) if path else ""}


def _check_folders(config: ServeConfig) -> None:
    for name in _FOLDERS:
        path = getattr(config, name)
        if path is not None and not Path(path).is_dir():
            raise ConfigurationError(f"{name} is {path}, which is not a folder. Give the path of a folder of {name}.")
    for model in config.models:
        for folder in filter(None, (model.path, model.base)):
            if not Path(folder).is_dir():
                raise ConfigurationError(
                    f"Model {model.name}: {folder} is not a folder. Give the path of a model folder on this machine "
                    "(python -m server.defaults fetches the default ones).",
                    exit_code=EXIT_MODEL,
                )
