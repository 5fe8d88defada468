"""Fields of bodies that no schema here names: refused, or ignored and named in a header; never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from server.api.bodies.schemas import StrictModel
from server.api.context import Context
from server.errors import UnknownParameter, UnsupportedParameter

MAX_NAMED = 32
"""Most fields that are named to the client."""
MAX_NAME_CHARACTERS = 64


class Refusal(NamedTuple):
    """Of a field that others know and this server cannot honour."""

    reason: str
    """What to do instead, after "is not supported here:"."""
    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, such as the default."""

    def is_neutral(self, value: Any) -> bool:
        """As JSON compares: 1.0 is 1, and 0 is not false."""
        return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in self.neutral)


class LenientModel(StrictModel):
    """Base of bodies in dialects that name unknown fields: they are kept aside for `check_fields`.

    A null is an absent field. Known fields are read as strictly as everywhere.
    """

    model_config = ConfigDict(extra="allow")
    refused: ClassVar[Mapping[str, Refusal]] = {}
    """Fields of the dialect that this server cannot honour."""

    def unread(self) -> Iterable[str]:
        """Names of the known fields that have no effect with the values they have here."""
        return ()


def check_fields(context: Context, body: LenientModel) -> None:
    """Refuse what cannot be honoured and is not neutral; the answer's header names what else is left out.

    With the setting ``strict``, and in dialects that do not name unknown fields, the first of those is refused too.
    """
    refusals = type(body).refused
    extra = body.model_extra or {}
    for name, refusal in refusals.items():
        if (value := _without_nulls(extra.get(name))) is not None and not refusal.is_neutral(value):
            raise UnsupportedParameter(name, refusal.reason)
    names = [name for name in dict.fromkeys(unread_fields(body)) if name not in refusals]
    if names and (context.front.config.strict or not context.dialect.names_unknown_fields):
        raise UnknownParameter(names[0], sorted(type(body).model_fields))
    context.record.ignored_fields = ", ".join(quote(name[:MAX_NAME_CHARACTERS]) for name in names[:MAX_NAMED])


def _without_nulls(value: Any) -> Any:
    """An object's null is an absent field too."""
    return {name: held for name, held in value.items() if held is not None} if isinstance(value, dict) else value


def unread_fields(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the fields, nulls left out, that nothing reads; entries of a list have the list's path."""
    if isinstance(value, BaseModel):
        yield from (path + name for name, extra in (value.model_extra or {}).items() if extra is not None)
        if isinstance(value, LenientModel):
            yield from (path + name for name in value.unread())
        for name in type(value).model_fields:
            yield from unread_fields(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from unread_fields(item, path)
