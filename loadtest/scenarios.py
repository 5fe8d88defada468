"""What clients ask for: mixes of requests, as the files in scenarios/ describe them.

A file has a description, the ``rates`` and numbers of ``clients`` to try, ``limits`` that a request should keep, and
one ``[[request]]`` table for each kind of request. All text is made up by a seeded generator: the same seed gives the
same requests.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from client import Timeline

FOLDER = Path(__file__).parent / "scenarios"
PREFIX_SEED = 12

WORDS = ("river", "mill", "stone", "bridge", "morning", "cart", "hill", "evening", "baker", "price", "winter", "garden")
REVIEWS = (
    "I would buy it again.", "It broke after two days.", "It arrived on a Tuesday.", "Worth every penny.",
    "The colour is not the one in the picture 🙁.", "买了两次，质量一直很好。", "Nobody answered my letters.",
)  # fmt: skip
LETTERS = (
    "My name is Maria Jensen and I live at 12 Oak Street in Portland.", "Please call Robert Brown at +1 503 555 0142.",
    "The parcel was left at 221 Walnut Avenue, Denver.", "You can write to j.smith@example.com until Friday.",
    "The weather has been fine since we came back.", "Anna García signed for it on the third of May.",
)  # fmt: skip


class ScenarioError(Exception):
    """A scenario's file does not say what can be run; the message names the place."""


@dataclass(frozen=True)
class Limits:
    """What a request should keep, in milliseconds; absent where nothing is promised."""

    ttft_ms: float | None = None
    """Until its first token."""
    gap_ms: float | None = None
    """Between its tokens, in the mean."""
    total_ms: float | None = None

    def are_kept(self, timeline: Timeline) -> bool:
        gaps_s = timeline.gaps_s
        taken = {
            self.ttft_ms: timeline.ttft_s,
            self.gap_ms: sum(gaps_s) / len(gaps_s) if gaps_s else None,
            self.total_ms: timeline.end - timeline.start,
        }
        return timeline.is_whole and all(
            limit is None or seconds is None or 1e3 * seconds <= limit for limit, seconds in taken.items()
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One kind of request."""

    route: str
    weight: float = 1.0
    text: str = "words"
    """``words``, ``reviews`` or ``letters``."""
    length: tuple[int, int] = (8, 24)
    """Words of a text, sentences of reviews and letters: from, to."""
    shared: int = 0
    """So many words that all texts of the scenario begin with."""
    inputs: int = 1
    """Texts in one request."""
    new_tokens: tuple[int, int] = (16, 64)
    """Of a generation, from, to: exactly so many, whatever the model would rather say."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def body(self, rng: random.Random) -> dict[str, Any]:
        texts = [self._text(rng) for _ in range(self.inputs)]
        inputs = texts if self.inputs > 1 else texts[0]
        if self.route != "/generate":
            return {"inputs": inputs, "parameters": dict(self.parameters)}
        fixed = {"max_new_tokens": rng.randint(*self.new_tokens), "ignore_eos": True}
        return {"inputs": inputs, "stream": self.inputs == 1, "parameters": {**fixed, **self.parameters}}

    def _text(self, rng: random.Random) -> str:
        prefix = " ".join(random.Random(PREFIX_SEED).choices(WORDS, k=self.shared))
        return (prefix + ". " if prefix else "") + TEXTS[self.text](rng, rng.randint(*self.length))


def _words(rng: random.Random, length: int) -> str:
    return "Tell me a story about the " + " ".join(rng.choices(WORDS, k=length)) + "."


def _sentences(of: Sequence[str]) -> Callable[[random.Random, int], str]:
    return lambda rng, length: " ".join(rng.choices(of, k=length))


TEXTS: dict[str, Callable[[random.Random, int], str]] = {
    "words": _words,
    "reviews": _sentences(REVIEWS),
    "letters": _sentences(LETTERS),
}


@dataclass(frozen=True)
class Scenario:
    """A mix of requests, and what to try it with."""

    name: str
    description: str
    requests: Sequence[Request]
    rates: Sequence[float] = (0.5, 1.0, 2.0)
    """Arrivals a second."""
    clients: Sequence[int] = (1, 4, 16)
    """That each send a request when the one before is answered."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("rates", "clients"):
            values = getattr(self, name)
            if not values or not all(isinstance(value, (int, float)) and value > 0 for value in values):
                raise ValueError(f"{name} are {values}: they must be numbers above 0")

    def draw(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """Route and body of the next request."""
        [request] = rng.choices(self.requests, [each.weight for each in self.requests])
        return request.route, request.body(rng)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Scenario:
    """The scenario of that name, or in the file at that path. Raises `ScenarioError`."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ScenarioError(f"There is no scenario {name}. There are: {', '.join(names())}.") from None
    except ValueError as error:
        raise ScenarioError(f"{path} is not valid TOML: {error}.") from None
    tables = content.pop("request", [])
    if not tables:
        raise ScenarioError(f"{path} has no [[request]].")
    requests = [_made(Request, table, f"{path}: request {number}") for number, table in enumerate(tables, start=1)]
    limits = _made(Limits, content.pop("limits", {}), f"{path}: limits")
    return _made(Scenario, {**content, "name": path.stem, "requests": requests, "limits": limits}, str(path))


def _made(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    known = [each.name for each in fields(kind)]
    for name in values:
        if name not in known:
            raise ScenarioError(f"{where}: there is no {name}. Available: {', '.join(known)}.")
    try:
        made = kind(**values)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"{where}: {error}.") from None
    if isinstance(made, Request) and made.text not in TEXTS:
        raise ScenarioError(f"{where}: text is {made.text}; it must be one of {', '.join(TEXTS)}.")
    return made
