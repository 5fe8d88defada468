"""Which metrics and labels a PromQL expression names: enough of its grammar for dashboards and alerts."""

from __future__ import annotations

import re

from server import metrics

SCRAPED_LABELS = {"job", "instance"}
KEYWORDS = {"and", "or", "unless", "bool", "offset"}
SAMPLES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
"""What a family's samples are called, after the family's name."""


def exported() -> dict[str, set[str]]:
    """Every sample that the server's metrics have, with its labels; and ``up``, which is Prometheus' own."""
    found: dict[str, set[str]] = {"up": set(SCRAPED_LABELS)}
    labels = {id(value): set(value._labelnames) for value in vars(metrics).values() if hasattr(value, "_labelnames")}
    for collector in metrics.REGISTRY._collector_to_names:
        for family in collector.collect():
            for suffix in SAMPLES[family.type]:
                bucket = {"le"} if suffix == "_bucket" else set()
                found[family.name + suffix] = labels.get(id(collector), set()) | bucket | SCRAPED_LABELS
    return found


def names(expression: str) -> set[str]:
    """The metrics of an expression."""
    plain = re.sub(r'"[^"]*"', "", expression)
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", plain)
    plain = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", plain)
    return set(re.findall(r"(?<![\w$.])[a-zA-Z_:][\w:]*(?!\s*\()\b", plain)) - KEYWORDS


def labels(expression: str) -> set[str]:
    """The labels that an expression selects by, groups by or matches on."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\"\"", plain)
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", plain)
    return {*selected, *(label.strip() for group in grouped for label in group.split(","))}


def problems(expression: str) -> list[str]:
    """What the expression names that no server exports."""
    known = exported()
    used = names(expression)
    unknown = [f"no metric is called {name}" for name in sorted(used - known.keys())]
    possible = set().union(*(known[name] for name in used & known.keys()))
    return unknown + [f"no metric of it has the label {label}" for label in sorted(labels(expression) - possible)]
