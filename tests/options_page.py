"""Makes `server/OPTIONS.md` from the tables that the server itself goes by. ``python -m tests.options_page`` writes it.

A cell of the second table is the outcome of a trial: the option's example together with the column's.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from server.errors import ConflictingParameters
from server.serving import sampling
from server.serving.conflicts import RULES, SYNONYMS, UNSUPPORTED
from server.serving.options import GenerateOptions, from_mapping
from server.serving.ranges import RANGES
from server.settings import field_docstrings
from tests.api.scripted import ready
from tests.option_examples import BEAMS, BODIES, EXAMPLES, GRAMMAR, SAMPLING

PAGE = Path(__file__).parents[1] / "server" / "OPTIONS.md"
COLUMNS = ("sampling", "beams", "stream", "n", "grammar", "adapter")
GROUPS = {
    "max_new_tokens": "Length and end",
    "do_sample": "The draw",
    "num_return_sequences": "Several outputs, beam search",
    "repetition_penalty": "Penalties",
    "logit_bias": "Biases and bans of tokens, guidance",
    "banned_phrases": "Text and structure",
    "details": "What is told",
    "penalty_alpha": "Refused",
}
"""Name of the group that begins with an option."""
NAMES = [field.name for field in fields(GenerateOptions)]

HEAD = """# Options of /generate

What stands under `parameters` in the body of `POST /generate`. `python -m tests.options_page` makes this page from the
tables that the server checks requests by, and a test tries every cell and every example.

Values come from the request, then from its template, then from the model's `generation_config.json`, then from the
server. A field that is null, or that has a value without effect (the neutral one), is as if it were left out. Anything
else is honoured exactly or refused with status 422 and a message that names the fields. `"return_parameters": true`
tells what had an effect in the end and where each value came from. A value of `generation_config.json` that is out of
range is left out, with a line in the log.
"""

BODY_TABLE = """
## Beside the parameters

| Field | Meaning |
| --- | --- |
| `inputs` | A text to go on from, or a list of texts that are answered as a list. |
| `template`, `variables`, `examples` | A prompt template of the server's and what fills it, in place of `inputs`. |
| `messages` | A conversation for the model's own chat template, in place of `inputs`. |
| `chat_template_kwargs` | For `messages`: numbers, texts and truth values under names that the chat template uses. |
| `cache_salt` | A text of at most 64 characters: requests with different ones share nothing in the prefix cache. |
| `stream` | Answer with one server-sent event for each token. |
| `model` | The served model; the first that generates where it is left out. |

A `chat_template` of the request's own is refused.
"""

TABLE_HEAD = """
## What goes with what

`no` names what the option does not go with. `sampling` stands for `do_sample`, `beams` for `num_beams` above 1, `n`
for several outputs. An adapter is served as a model of its own and has every option.

"""


def range_of(name: str) -> str:
    """What the value must be."""
    if name in UNSUPPORTED:
        return UNSUPPORTED[name]
    words = ""
    if name in RANGES:
        words = RANGES[name].rule
    hint = get_type_hints(GenerateOptions)[name]
    if bool in get_args(hint) and not words:
        words = "true or false"
    literals = [value for arm in get_args(hint) for value in get_args(arm) if isinstance(value, str)]
    if literals and name not in ("logit_bias", "sequence_bias"):
        shown = ", ".join(f'"{value}"' for value in literals)
        words = f"{words} or {shown}" if words else shown
    return words.removeprefix("must ").removeprefix("be ") or "as described"


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
    return {**BODIES.get(name, {"inputs": "The old mill"}), **({"stream": True} if column == "stream" else {})}


def parameters_of(name: str, column: str) -> dict[str, Any]:
    return {**context(column, EXAMPLES[name]), **EXAMPLES[name]}


def cell(name: str, column: str) -> str:
    """The outcome of asking for both."""
    try:
        sampling.check(from_mapping(parameters_of(name, column)), ready(), body=body_of(name, column))
    except ConflictingParameters as error:
        others = [field for field in error.fields if field != name]
        return "no: " + " with ".join(f"`{field}`" for field in others)
    return "yes"


def page() -> str:
    helps = field_docstrings(GenerateOptions)
    parts = [HEAD]
    for name in NAMES:
        if name in GROUPS:
            parts.append(f"\n## {GROUPS[name]}\n\n| Option | Meaning | Value | Example |\n| --- | --- | --- | --- |\n")
        example = f"`{json.dumps(EXAMPLES[name], ensure_ascii=False)}`" if name in EXAMPLES else ""
        example += f" beside `{json.dumps(BODIES[name])}`" if name in BODIES else ""
        parts.append(f"| `{name}` | {helps[name]} | {range_of(name)} | {example} |\n")
    parts += [BODY_TABLE, TABLE_HEAD, f"| Option | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}\n"]
    for name in EXAMPLES:
        parts.append(f"| `{name}` | {' | '.join(cell(name, column) for column in COLUMNS)} |\n")
    parts.append("\n## Every rule between two fields\n\n| Field | and field | Why not |\n| --- | --- | --- |\n")
    shown = [(first, second, reason) for first, second, reason in SYNONYMS]
    shown += [(rule.first, rule.second, rule.words) for rule in RULES]
    parts += [f"| `{first}` | `{second}` | {reason} |\n" for first, second, reason in shown]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
