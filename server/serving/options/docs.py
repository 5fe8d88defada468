"""`server/OPTIONS.md`, made from the table and the rules. ``python -m server.serving.options.docs`` writes it.

A cell of the second table is the outcome of a trial: the option's example together with the column's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

from server.errors import ConflictingParameters
from server.protocol import Ready, TokenizerFiles
from server.serving.options.merge import check, merge
from server.serving.options.reading import from_mapping
from server.serving.options.rules import RULES, SYNONYMS
from server.serving.options.table import OPTIONS, GenerateOptions
from server.settings import field_docstrings

PAGE = Path(__file__).parents[2] / "OPTIONS.md"
SAMPLING = {"do_sample": True, "seed": 7}
BEAMS = {"num_beams": 2}
GRAMMAR = {"grammar": OPTIONS["grammar"].example}
COLUMNS = ("sampling", "beams", "stream", "n", "grammar", "adapter")
EXAMPLES: dict[str, dict[str, Any]] = {
    name: {name: option.example, **option.beside} for name, option in OPTIONS.items() if option.example is not None
}
"""Parameters with which each option has an effect."""
MODEL = Ready(
    task="generate",
    architecture="Model",
    tokenizer=TokenizerFiles(""),
    vocab_size=50_000,
    max_model_len=4096,
    device="cpu",
    dtype="float32",
    executor="generic",
    attention="native",
    num_parameters=0,
    weight_bytes=0,
    max_running=64,
    generation_config={"end_token_ids": [0]},
)
"""One whose limits no example exceeds."""

HEAD = """# Options of /generate

The `parameters` of `POST /generate`. `python -m server.serving.options.docs` writes this page from the table that the
server checks requests with. A test tries every cell and every example.

A value comes from the request, else from its template, else from the model's `generation_config.json`, else from the
server. A field that is null or has its neutral value counts as left out. All others are applied exactly, or rejected
with status 422 and a message that names the fields. `"return_parameters": true` shows which options had an effect and
where their values came from. The server ignores values of `generation_config.json` that are out of range, and logs
them.
"""

BODY_TABLE = """
## Other fields of the body

| Field | Meaning |
| --- | --- |
| `inputs` | The prompt, or a list of prompts. A list returns a list. |
| `template`, `variables`, `examples` | One of the server's prompt templates and its values, instead of `inputs`. |
| `messages` | A conversation for the model's chat template, instead of `inputs`. |
| `chat_template_kwargs` | Variables of the chat template, for `messages`: numbers, strings and booleans. |
| `cache_salt` | A string of at most 64 characters. Requests with different salts share nothing in the prefix cache. |
| `stream` | Send each token as a server-sent event. |
| `model` | The name of a served model. Default: the first model that generates. |

A request cannot bring its own `chat_template`.
"""

TABLE_HEAD = """
## Compatibility

`no` names the field that conflicts. `sampling` stands for `do_sample`, `beams` for `num_beams` above 1, and `n` for
several outputs. Adapters are served as models and support every option.

"""


def range_of(name: str) -> str:
    """What the value must be."""
    option = OPTIONS[name]
    if option.unsupported is not None and not option.is_read_by_route:
        return option.unsupported
    words = "" if option.range is None else option.range.rule
    hint = get_type_hints(GenerateOptions)[name]
    if bool in get_args(hint) and not words:
        words = "true or false"
    literals = [value for arm in get_args(hint) for value in get_args(arm) if isinstance(value, str)]
    if literals and name not in ("logit_bias", "sequence_bias"):
        shown = ", ".join(f'"{value}"' for value in literals)
        words = f"{words} or {shown}" if words else shown
    return re.sub(r"^must (be |contain |have )?", "", words) or "as described"


def context(column: str, example: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a column stands for, beside the example's own."""
    if column == "sampling":
        return SAMPLING
    if column == "beams":
        return BEAMS
    if column == "grammar":
        return GRAMMAR
    if column == "n" and not {"n", "num_return_sequences"} & {*example}:
        sampled = {} if "num_beams" in example or "do_sample" in example else SAMPLING
        return {"num_return_sequences": 2, **sampled}
    return {}


def body_of(name: str, column: str = "") -> dict[str, Any]:
    """What stands beside the parameters."""
    return {**(OPTIONS[name].body or {"inputs": "The old mill"}), **({"stream": True} if column == "stream" else {})}


def parameters_of(name: str, column: str) -> dict[str, Any]:
    return {**context(column, EXAMPLES[name]), **EXAMPLES[name]}


def cell(name: str, column: str) -> str:
    """The outcome of asking for both."""
    options, body = from_mapping(parameters_of(name, column)), body_of(name, column)
    try:
        check(options, MODEL, body)
        merge(options, GenerateOptions(), {}, MODEL, body)
    except ConflictingParameters as error:
        others = [field for field in error.fields if field != name]
        return "no: " + " with ".join(f"`{field}`" for field in others)
    return "yes"


def page() -> str:
    helps = field_docstrings(GenerateOptions)
    parts = [HEAD]
    for name, option in OPTIONS.items():
        if option.begins is not None:
            parts.append(f"\n## {option.begins}\n\n| Option | Meaning | Value | Example |\n| --- | --- | --- | --- |\n")
        example = f"`{json.dumps(EXAMPLES[name], ensure_ascii=False)}`" if name in EXAMPLES else ""
        example += f" beside `{json.dumps(option.body)}`" if option.body is not None else ""
        parts.append(f"| `{name}` | {helps[name]} | {range_of(name)} | {example} |\n")
    parts += [BODY_TABLE, TABLE_HEAD, f"| Option | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}\n"]
    for name in EXAMPLES:
        parts.append(f"| `{name}` | {' | '.join(cell(name, column) for column in COLUMNS)} |\n")
    parts.append("\n## All conflicts\n\n| Field | Conflicts with | Reason |\n| --- | --- | --- |\n")
    shown = [(first, second, reason) for first, second, reason in SYNONYMS]
    shown += [(rule.first, rule.second, rule.words) for rule in RULES]
    parts += [f"| `{first}` | `{second}` | {reason} |\n" for first, second, reason in shown]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
