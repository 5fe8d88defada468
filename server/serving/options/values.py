"""Which values have an effect and which are neutral, so that clients may send every field they know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.serving.options.table import OPTIONS

GREEDY_BELOW = 1e-5
"""A lower temperature leaves all probability on the most likely token: it is the same as 0."""

DRAW = tuple(name for name, option in OPTIONS.items() if option.draw == "asks")
"""Options that imply sampling."""

NEUTRAL: dict[str, Any] = {
    **{name: option.neutral for name, option in OPTIONS.items() if option.neutral is not None},
    "stream": False,
}
"""Values that mean the same as leaving the field out. A field without one has an effect unless it is empty."""


class OptionValues:
    """The values of options, and of the fields beside them in the body, by the client's names."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        value = self.values.get(name)
        return NEUTRAL.get(name) if value is None else value

    def has(self, name: str) -> bool:
        """Whether the field has a value that is not neutral."""
        value = self.values.get(name)
        return value is not None and is_set(name, value)

    @property
    def is_sampling(self) -> bool:
        return bool(self["do_sample"]) and self["temperature"] >= GREEDY_BELOW

    @property
    def num_outputs(self) -> int:
        return int(max(self["num_return_sequences"], self["best_of"]))


def is_set(name: str, value: Any) -> bool:
    return value is not None and value != () and value != {} and value != NEUTRAL.get(name)
