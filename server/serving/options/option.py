"""What the table says of one option beside its name, type and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

from server.serving.options.ranges import Range


@dataclass(frozen=True)
class Form:
    """Where and how the page offers the option. Kind and limits of the field follow from the option itself."""

    group: str
    label: str
    hint: str = ""
    step: float | None = None
    """What a number's arrows add; None: 1."""
    choices: tuple[tuple[Any, str], ...] = ()
    """Values and their labels, of an option that is chosen from a list."""
    in_chat: bool = True


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a generation."""

    range: Range | None
    neutral: Any = None
    """The value that means the same as leaving the option out, beside null and what is empty."""
    draw: Literal["asks", "refines"] | None = None
    """An option of the draw: one that ``asks`` implies sampling. Without sampling neither has an effect."""
    from_model: bool = False
    """Its default may come from the model's generation_config."""
    can_forbid: bool = False
    """It can forbid tokens; several such options may together forbid all."""
    unsupported: str | None = None
    """Peers know the option and this server refuses it: what to do instead."""
    is_read_by_route: bool = False
    """The routes of /generate honour it before options are checked: the others refuse it."""
    example: Any = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Other options that the example needs."""
    body: Mapping[str, Any] | None = None
    """Fields beside the parameters that the example needs instead of ``inputs``."""
    begins: str | None = None
    """Title of the group in the documentation that begins with the option."""
    form: Form | None = None
    """None: the page offers it as JSON only."""


def option(range_: Range | None = None, **facts: Any) -> Any:
    """A field of the table. ``facts`` are the fields of `Option`."""
    found: Any = Field(None)
    found.metadata.append(Option(range=range_, **facts))
    return found


def options_of(table: type[BaseModel]) -> dict[str, Option]:
    """Every option of a table, by name."""
    return {
        name: fact for name, info in table.model_fields.items() for fact in info.metadata if isinstance(fact, Option)
    }
