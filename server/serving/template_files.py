"""A folder of prompt templates: what their files may say, and what they declare their variables to be."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from server.errors import ConfigurationError, InvalidParameter, InvalidRequest, UnknownParameter
from server.serving.options.reading import from_mapping

TemplateTask = Literal["generate", "classify", "ner"]
FILE_STEM = re.compile(r"(?P<name>[a-z0-9][a-z0-9_-]{0,63})(@(?P<version>[1-9][0-9]{0,5}))?")
VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")
EXAMPLES = "examples"
"""What the examples, laid out, are called in the text."""
MAX_FILE_BYTES = 256 * 1024
MAX_EXAMPLES = 64

_KINDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "list": "a list of strings",
}
_LIMITS = {
    "string": {"min_length", "max_length", "choices"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "boolean": set[str](),
    "list": {"min_items", "max_items", "max_length"},
}


class Variable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a value must be. Lengths count characters, of a list those of each entry."""

    type: Literal["string", "integer", "number", "boolean", "list"] = "string"
    description: str = ""
    default: Any = None
    """None: the client must give it."""
    min_length: int | None = None
    max_length: int | None = None
    choices: list[str] | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_items: int | None = None
    max_items: int | None = None

    def describe(self) -> dict[str, Any]:
        """As the API shows it."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return {**given, "type": self.type, "required": self.default is None}

    def check_itself(self) -> None:
        """Raise ValueError if the declaration makes no sense."""
        limits = {name for name in set().union(*_LIMITS.values()) if getattr(self, name) is not None}
        for name in sorted(limits - _LIMITS[self.type]):
            raise ValueError(f"has {name}, which {_KINDS[self.type]} cannot have")
        if self.choices is not None and not self.choices:
            raise ValueError("has no choices")
        for low, high in (("min_length", "max_length"), ("minimum", "maximum"), ("min_items", "max_items")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"has a {low} above its {high}")
        if self.default is not None:
            try:
                self.check("default", self.default)
            except InvalidParameter as error:
                raise ValueError(f"has a wrong default: {error.message}") from None

    def check(self, path: str, value: Any) -> None:
        """Raise InvalidParameter that names ``path`` unless ``value`` is one of this variable's."""
        if not self._is_of_type(value):
            raise InvalidParameter(path, value, f"must be {_KINDS[self.type]}")
        if self.type == "list":
            _check_size(path, value, self.min_items, self.max_items, "entries")
            for i, item in enumerate(value):
                _check_size(f"{path}.{i}", item, None, self.max_length, "characters")
        elif self.type == "string":
            _check_size(path, value, self.min_length, self.max_length, "characters")
            if self.choices is not None and value not in self.choices:
                raise InvalidParameter(path, value, f"must be one of {', '.join(self.choices)}")
        elif self.minimum is not None and value < self.minimum:
            raise InvalidParameter(path, value, f"must be at least {self.minimum:g}")
        elif self.maximum is not None and value > self.maximum:
            raise InvalidParameter(path, value, f"must be at most {self.maximum:g}")

    def _is_of_type(self, value: Any) -> bool:
        if self.type == "list":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        if self.type == "number":
            return type(value) in (int, float) and math.isfinite(value)
        return type(value) is {"string": str, "integer": int, "boolean": bool}[self.type]

    @property
    def sample(self) -> Any:
        """Some value that it may have."""
        if self.default is not None:
            return self.default
        if self.type == "boolean":
            return True
        if self.type == "list":
            return ["x"] * (self.min_items or 0)
        if self.type == "string":
            return self.choices[0] if self.choices else "x" * (self.min_length or min(1, self.max_length or 1))
        return next((limit for limit in (self.minimum, self.maximum) if limit is not None), 1)


def _check_size(path: str, value: str | list[str], least: int | None, most: int | None, unit: str) -> None:
    if least is not None and len(value) < least:
        raise InvalidParameter(path, value, f"must have at least {least} {unit}, and has {len(value)}")
    if most is not None and len(value) > most:
        raise InvalidParameter(path, value, f"must have at most {most} {unit}, and has {len(value)}")


class Examples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How few-shot examples are laid out: one after another, each in this text."""

    text: str
    fields: dict[str, Variable]
    separator: str = "\n"
    min_count: int = 0
    max_count: int = MAX_EXAMPLES


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says."""

    task: TemplateTask
    text: str
    description: str = ""
    variables: dict[str, Variable] = {}
    examples: Examples | None = None
    parameters: dict[str, Any] = {}


class Template(_File, frozen=True, kw_only=True):
    """One version of one template, checked but for its text."""

    name: str
    version: int
    file: str
    """For the operator."""

    def check_values(self, variables: Mapping[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The variables with their defaults. Raises InvalidRequest that names what is missing, unknown or wrong."""
        values = _checked(self.variables, variables, "variables")
        if self.examples is None:
            if examples:
                raise UnknownParameter(EXAMPLES, [f"variables.{name}" for name in self.variables])
            return values
        if not self.examples.min_count <= len(examples) <= self.examples.max_count:
            rule = f"must be {self.examples.min_count} to {self.examples.max_count}"
            raise InvalidParameter(EXAMPLES, examples, f"has {len(examples)} entries, and {rule}")
        for i, example in enumerate(examples):
            _checked(self.examples.fields, example, f"{EXAMPLES}.{i}")
        return values

    def example_values(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The examples with their defaults."""
        fields = self.examples.fields if self.examples is not None else {}
        return [_checked(fields, example, f"{EXAMPLES}.{i}") for i, example in enumerate(examples)]

    def describe(self) -> dict[str, Any]:
        """As the API shows it; the text is the operator's own."""
        described: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "description": self.description,
            "variables": {name: variable.describe() for name, variable in self.variables.items()},
            "parameters": self.parameters,
        }
        if self.examples is not None:
            described[EXAMPLES] = {
                "fields": {name: field.describe() for name, field in self.examples.fields.items()},
                "min_count": self.examples.min_count,
                "max_count": self.examples.max_count,
            }
        return described


def _checked(declared: Mapping[str, Variable], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Null is an absent value."""
    values = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in declared:
            raise UnknownParameter(f"{where}.{name}", sorted(declared))
    for name, variable in declared.items():
        path = f"{where}.{name}"
        if name in values:
            variable.check(path, values[name])
        elif variable.default is None:
            raise InvalidRequest(f"{path} is missing: the template needs it.", param=path)
        else:
            values[name] = variable.default
    return values


def read_folder(folder: str | None) -> list[Template]:
    """Every template of the folder, in order of name and version. Raises ConfigurationError that names the file."""
    if folder is None:
        return []
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix == ".toml" and path.name[0] != ".")
    except OSError as error:
        raise ConfigurationError(f"templates is {folder}: the folder cannot be read: {error.strerror}.") from None
    found: dict[tuple[str, int], Template] = {}
    for path in paths:
        template = read_file(path)
        if other := found.get((template.name, template.version)):
            raise ConfigurationError(f"{path} and {other.file} are the same version of one template.")
        found[template.name, template.version] = template
    return [found[key] for key in sorted(found)]


def read_file(path: Path) -> Template:
    """One template. Raises ConfigurationError that names the file and the problem."""
    try:
        return _read(path)
    except OSError as error:
        raise ConfigurationError(f"Template {path} cannot be read: {error.strerror}.") from None
    except (ValueError, InvalidParameter) as error:
        raise ConfigurationError(f"Template {path}: {error}") from None


def _read(path: Path) -> Template:
    stem = FILE_STEM.fullmatch(path.stem)
    if stem is None:
        raise ValueError("a template's file is NAME.toml or NAME@VERSION.toml: small letters, digits, - and _.")
    content = path.read_bytes()
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes.")
    try:
        file = msgspec.convert(tomllib.loads(content.decode()), _File)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}.".replace("Object", "It").replace("`", "")) from None
    except ValueError as error:
        raise ValueError(f"it is not valid TOML: {error}.") from None
    except RecursionError:
        raise ValueError("its TOML is nested too deeply.") from None
    _check(file)
    fields = {field: getattr(file, field) for field in _File.__struct_fields__}
    return Template(**fields, name=stem["name"], version=int(stem["version"] or 1), file=str(path))


def _check(file: _File) -> None:
    _check_variables(file.variables, "variables")
    if file.examples is not None:
        _check_variables(file.examples.fields, "examples.fields")
        if not 0 <= file.examples.min_count <= file.examples.max_count <= MAX_EXAMPLES:
            raise ValueError(f"examples: min_count to max_count must lie in 0 to {MAX_EXAMPLES}.")
    if file.parameters and file.task != "generate":
        raise ValueError("parameters are for the task generate only.")
    from_mapping(file.parameters)


def _check_variables(variables: Mapping[str, Variable], where: str) -> None:
    for name, variable in variables.items():
        if VARIABLE.fullmatch(name) is None or name == EXAMPLES:
            raise ValueError(f"{where}.{name} is not a valid variable name.")
        try:
            variable.check_itself()
        except ValueError as error:
            raise ValueError(f"{where}.{name} {error}.".replace("..", ".")) from None
