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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_MODEL, ConfigurationError
from server.settings_file import FOLDERS, OWN, read_file

PREFIX = "SLUICE_"
_OTHER_VARIABLES = ("MODEL", "CONFIG", "API_KEYS", "API_KEY")
"""Without a setting of their name. The last is a client's, with the key that it sends."""
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


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
        kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
        wanted = "one of " + ", ".join(self.choices) if self.choices else kinds[self.kind]
        return ConfigurationError(f"{origin} is {value!r}: it must be {wanted}.")


@functools.cache
def settings() -> dict[str, Setting]:
    """All of them, by field name, in the order of the dataclasses."""
    found = {}
    for owner, left_out in ((ServeConfig, ("models",)), (ModelConfig, OWN)):
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
    """Give the parser model folders and a flag for every setting; values stay text until `load`."""
    parser.add_argument(
        "paths",
        nargs="*",
        # Else argparse counts it among what is required.
        default=[],
        metavar="PATH",
        help="A model folder to serve. NAME=PATH gives it a name. (default: the folder's name)",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME=PATH",
        help="The same as a flag. Repeatable; the first of a task is its default. Replaces the file's models. "
        f"In {PREFIX}MODEL separated by commas.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"A TOML file with settings and [[models]]; or {PREFIX}CONFIG."
    )
    server = parser.add_argument_group("server", f"Each flag is also a variable: --port is {PREFIX}PORT.")
    for setting in settings().values():
        if not setting.per_model:
            _add_flag(server, setting)
    add_model_flags(parser, "Apply to all models; a [[models]] table in the file overrides them.")


def add_model_flags(parser: argparse.ArgumentParser, description: str) -> None:
    """A flag for every setting of a model."""
    group = parser.add_argument_group("models", description)
    for setting in settings().values():
        if setting.per_model:
            _add_flag(group, setting)


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> None:
    shown = setting.help.replace("``", "").replace("%", "%%")
    if setting.default not in (None, ""):
        shown += f" (default: {str(setting.default).lower() if setting.kind is bool else setting.default})"
    if setting.kind is bool:
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=None, help=shown)
    else:
        metavar = "{" + ",".join(setting.choices) + "}" if setting.choices else setting.kind.__name__.upper()
        group.add_argument(setting.flag, metavar=metavar, default=None, help=shown)


def load(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServeConfig:
    """The configuration that flags, environment and file together make. Raises `ConfigurationError`."""
    given = gather(options, environment)
    models = tuple(ModelConfig(**{name: value.value for name, value in model.items()}) for model in given.models)
    config = ServeConfig(models=models, **{name: value.value for name, value in given.server.items()})
    _check_folders(config)
    return config


@dataclass(frozen=True)
class Value:
    """What somebody has said a setting is, and where."""

    value: Any
    origin: str
    """A flag, a variable, or a file."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """All that has been said; what nobody has said has its default."""

    server: dict[str, Value]
    for_models: dict[str, Value]
    """For every model whose table does not say otherwise."""
    models: list[dict[str, Value]]
    """What holds for each model, its name and path among it."""


def gather(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Given:
    """What flags, environment and file say, each value checked by itself. Raises `ConfigurationError`."""
    _refuse_misspelt(environment)
    path = options.config or environment.get(PREFIX + "CONFIG")
    content, tables = read_file(Path(path), settings()) if path else ({}, [])
    file = {name: Value(value, str(path)) for name, value in content.items()}
    models = [{name: Value(value, str(path)) for name, value in table.items()} for table in tables]
    general = {**file, **_from_environment(environment), **_from_flags(options)}
    for_models = {name: value for name, value in general.items() if settings()[name].per_model}
    named = _named_models(options, environment)
    return Given(
        server={name: value for name, value in general.items() if name not in for_models},
        for_models=for_models,
        models=[{**for_models, **model} for model in named or models],
    )


def _named_models(options: argparse.Namespace, environment: Mapping[str, str]) -> list[dict[str, Value]]:
    """Those of the command line, else those of the environment."""
    words = [*getattr(options, "paths", []), *(options.model or [])]
    origin = "command line"
    if not words:
        words = [text for text in environment.get(PREFIX + "MODEL", "").split(",") if text.strip()]
        origin = PREFIX + "MODEL"
    return [{name: Value(value, origin) for name, value in _named(word.strip()).items()} for word in words]


def _from_flags(options: argparse.Namespace) -> dict[str, Value]:
    found = {}
    for setting in settings().values():
        value = getattr(options, setting.name, None)
        if value is not None:
            value = value if setting.kind is bool else setting.from_text(value, setting.flag)
            found[setting.name] = Value(value, setting.flag)
    return found


def flags_of(options: argparse.Namespace) -> list[str]:
    """The settings' flags that `options` were parsed from, as another process takes them."""
    found = []
    for setting in settings().values():
        value = getattr(options, setting.name, None)
        if value is not None and setting.kind is bool:
            found.append(setting.flag if value else setting.flag.replace("--", "--no-", 1))
        elif value is not None:
            found += [setting.flag, value]
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    found = {}
    for setting in settings().values():
        text = environment.get(setting.variable, "")
        # Kubernetes sets SLUICE_PORT to a URL in every pod beside a Service called "sluice": not meant for us.
        if text and not (setting.name == "port" and text.startswith("tcp://")):
            found[setting.name] = Value(setting.from_text(text, setting.variable), setting.variable)
    return found


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    """A variable that is almost one of ours is a mistake; others (Kubernetes has many) are not ours to judge."""
    known = {setting.variable for setting in settings().values()} | {PREFIX + name for name in _OTHER_VARIABLES}
    for variable in environment:
        if variable.startswith(PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.9)
            if near:
                raise ConfigurationError(f"Unknown variable {variable}. Did you mean {near[0]}?")


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
    for name in FOLDERS:
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
