"""Show every setting and its value, as flags, environment and file together make it.

    sluice config show --config sluice.toml --port 9000
    sluice config show --origin          where each value comes from

Takes all flags of ``sluice serve``. No model is needed: settings of models are those that would hold for one.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from server import settings
from server.commands.terminal import table
from server.settings import Given, Value
from server.settings_file import OWN

DEFAULT = "default"


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s show [--origin] [--json] [PATH ...] [any flag of sluice serve]"
    parser.add_argument("action", choices=["show"], metavar="show", help="The only action.")
    parser.add_argument("--origin", action="store_true", help="Show where each value comes from.")
    parser.add_argument("--json", action="store_true", help="Print a JSON object.")
    settings.add_flags(parser)


def run(options: Namespace) -> int:
    given = settings.gather(options, os.environ)
    if given.models:
        # Says what is wrong with the values together.
        settings.load(options, os.environ)
    shown = _as_json(given, options.origin) if options.json else "\n".join(_lines(given, options.origin))
    print(shown)
    return 0


def _values(said: Mapping[str, Value], *, per_model: bool) -> dict[str, Value]:
    """All settings of one kind, said or not."""
    every = [setting for setting in settings.settings().values() if setting.per_model is per_model]
    return {setting.name: said.get(setting.name, Value(setting.default, DEFAULT)) for setting in every}


def _as_json(given: Given, with_origin: bool) -> str:
    def plain(values: Mapping[str, Value]) -> dict[str, Any]:
        if with_origin:
            return {name: {"value": value.value, "origin": value.origin} for name, value in values.items()}
        return {name: value.value for name, value in values.items()}

    content = {
        "server": plain(_values(given.server, per_model=False)),
        "for_models": plain(_values(given.for_models, per_model=True)),
        "models": [plain({**_own(model), **_values(model, per_model=True)}) for model in given.models],
    }
    return json.dumps(content, indent=2)


def _own(model: Mapping[str, Value]) -> dict[str, Value]:
    return {name: model[name] for name in OWN}


def _lines(given: Given, with_origin: bool) -> list[str]:
    rows = _rows(_values(given.server, per_model=False)) + _rows(_values(given.for_models, per_model=True))
    for number, model in enumerate(given.models):
        different = {name: value for name, value in model.items() if given.for_models.get(name) != value}
        rows += [(f"models[{number}].{name}", text, origin) for name, text, origin in _rows(different)]
    return table([row if with_origin else row[:2] for row in rows])


def _rows(values: Mapping[str, Value]) -> list[tuple[str, str, str]]:
    return [(name, _text(value.value), value.origin) for name, value in values.items()]


def _text(value: Any) -> str:
    """As the file takes it; nothing for what has no value."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
