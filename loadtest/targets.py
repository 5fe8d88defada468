"""What the bench's numbers are held against, in the order in which the project promises them.

A target without a measurement is shown as such: nothing is met by not being measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from report import table

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One promise: ``read`` finds its number in the results, KeyError where it was not measured."""

    name: str
    limit: float
    read: Callable[[Results], float | None]
    is_most: bool = False
    """The number must not be above the limit; else not below."""
    unit: str = "x"

    def measured(self, results: Results) -> float | None:
        try:
            return self.read(results)
        except (KeyError, TypeError, ValueError):  # the part is missing or incomplete
            return None

    def is_met(self, results: Results) -> bool | None:
        value = self.measured(results)
        if value is None:
            return None
        return value <= self.limit if self.is_most else value >= self.limit

    def row(self, results: Results) -> list[str]:
        value, met = self.measured(results), self.is_met(results)
        sign = "<=" if self.is_most else ">="
        shown = "-" if value is None else self._shown(value)
        return [self.name, f"{sign} {self._shown(self.limit)}", shown, {None: "-", True: "yes", False: "NO"}[met]]

    def _shown(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        return f"{value:.2f} {self.unit}"


def shown(results: Results) -> str:
    """The table of all targets; the first column is set to the left."""
    rows = [target.row(results) for target in TARGETS]
    width = max(len(row[0]) for row in rows)
    return table(
        ["target".ljust(width), "wanted", "measured", "met"], [[row[0].ljust(width), *row[1:]] for row in rows]
    )


def bandwidth_part(part: Results) -> float:
    """How much of the time of one stream's step reading the weights takes at the speed measured in the same rounds."""
    sides = part["1 streams"]["sides"]
    weight_bytes = part["facts"]["plain"]["weight_bytes"]
    return float(weight_bytes / sides["memory"]["bytes_per_s"] / (sides["plain"]["decode_ms"] / 1e3))


def _at(*path: str) -> Callable[[Results], float]:
    def read(results: Results) -> float:
        found: Any = results
        for key in path:
            found = found[key]
        return float(found)

    return read


def _speed(part: str, case: str, side: str, key: str = "x_static") -> Callable[[Results], float]:
    return _at(part, case, "sides", side, key)


def _int8_beside_plain(part: str) -> Callable[[Results], float]:
    def read(results: Results) -> float:
        sides = results[part]["1 streams"]["sides"]
        return float(sides["plain"]["decode_ms"] / sides["int8"]["decode_ms"])

    return read


def _front(results: Results) -> float:
    """Of one core: what the processes took that speak HTTP and make text."""
    return float(results["streams"]["32 streams"]["sides"]["plain"]["front_cpu"])


def _front_and_wire(results: Results) -> float:
    """The same, and the worker's time between its steps, in which it reads, writes and waits."""
    side = results["streams"]["32 streams"]["sides"]["plain"]
    return float(side["front_cpu"] + side["between_steps_ms"] * side["steps"] / (1e3 * side["seconds"]))


def _worst_doubling(part: str, streams: int | None = None) -> Callable[[Results], float]:
    """The smallest factor in tokens a second from one point of a growth to the next."""

    def read(results: Results) -> float:
        points = [each for each in results[part]["points"] if streams in (None, each["streams"])]
        speeds = [
            [each["sides"][side]["tokens_per_s"] if streams is None else 1 / each["sides"][side]["decode_ms"]
             for each in points]
            for side in points[0]["sides"]
        ]  # fmt: skip
        return min(later / earlier for each in speeds for earlier, later in pairwise(each))

    return read


NEAR_TIE = 0.02
"""Two labels whose probabilities lie no further apart may change places where products are rounded to bfloat16."""


def _agreement(results: Results) -> float:
    found = results["encoder"]["agreement"]["float32"]
    return float(found["equal"] / found["texts"])


def _flat(results: Results) -> float:
    few, many = results["waiting"]["points"]
    return float(many["median_ms"] / few["median_ms"])


def _of_model(part: str, number: str) -> Iterator[Target]:
    name = f"{number}. {part}: "
    yield Target(name + "1 stream, part of the bandwidth floor", 0.62, lambda r: bandwidth_part(r[part]), unit="%")
    yield Target(name + "1 stream, int8 beside bf16", 1.65, _int8_beside_plain(part))
    for streams, plain, int8 in ((8, 2.8, 4.5), (32, 2.8, 3.6)):
        yield Target(name + f"{streams} streams, beside generate", plain, _speed(part, f"{streams} streams", "plain"))
        yield Target(name + f"{streams} streams, int8", int8, _speed(part, f"{streams} streams", "int8"))
    yield Target(name + "long prompts, beside generate", 1.2, _speed(part, "prefill", "plain"))
    yield Target(name + "long prompts, int8", 1.7, _speed(part, "prefill", "int8"))


TARGETS = (
    Target("1. 1 stream, part of the bandwidth floor", 0.62, lambda r: bandwidth_part(r["streams"]), unit="%"),
    Target("1. 1 stream, int8 beside bf16", 1.65, _int8_beside_plain("streams")),
    Target("2. 8 streams, beside generate", 2.8, _speed("streams", "8 streams", "plain")),
    Target("2. 8 streams, int8", 4.5, _speed("streams", "8 streams", "int8")),
    Target("2. 32 streams, beside generate", 2.8, _speed("streams", "32 streams", "plain")),
    Target("2. 32 streams, int8", 3.6, _speed("streams", "32 streams", "int8")),
    Target("3. 1,024-token prompts, prefill beside generate", 1.2, _speed("long", "prefill", "plain")),
    Target("3. 1,024-token prompts, int8", 1.7, _speed("long", "prefill", "int8")),
    Target("3. shared prefix x16, beside generate", 5.0, _speed("prefix", "shared prefix", "plain")),
    Target("3. the same when the prefix is known", 5.0, _speed("prefix", "shared prefix", "plain", "known_x_static")),
    Target("3. time to first token, hit of miss", 0.15, _speed("prefix", "shared prefix", "plain", "hit_part"),
           is_most=True, unit="%"),
    Target("4. p95 gap while long prompts arrive, bf16", 2.5, _at("steady", "sides", "plain", "x_gap_p95"),
           is_most=True),
    Target("4. the same in int8", 2.5, _at("steady", "sides", "int8", "x_gap_p95"), is_most=True),
    Target("4. p95 gap while 512-token sources arrive, bf16", 2.0, _at("steady-sources", "sides", "plain", "x_gap_p95"),
           is_most=True),
    Target("4. the same in int8", 2.0, _at("steady-sources", "sides", "int8", "x_gap_p95"), is_most=True),
    Target("5. encoder at 32, beside pipeline + FastAPI, float32", 5.0, _at("encoder", "x_pipeline")),
    Target("5. texts with the pipeline's labels, float32", 1.0, _agreement, unit="%"),
    Target("5. encoder, bfloat16", 5.0, _at("encoder", "x_pipeline_bfloat16")),
    Target("5. lead of the pipeline's label where ours is another, bfloat16", NEAR_TIE,
           _at("encoder", "agreement", "bfloat16", "largest_lead"), is_most=True, unit="%"),
    Target("5. encoder, int8", 5.0, _at("encoder", "x_pipeline_int8")),
    Target("5. fifty classifiers on one encoder, beside one", 0.9, _at("classifiers", "x_one")),
    Target("5. their weights with the encoder's", 250.0, _at("classifiers", "weight_mb"), is_most=True, unit="MB"),
    Target("6. 8 requests of 4 beams, beside generate", 1.5, _at("beams", "x_static_batch")),
    *_of_model("qwen2-0.5b", "7"),
    *_of_model("gpt2-124m", "7"),
    Target("8. front at 32 streams, of a core", 0.15, _front, is_most=True, unit="%"),
    Target("8. the same and the worker between its steps", 0.15, _front_and_wire, is_most=True, unit="%"),
    Target("8. engine outside of the forward, 32 rows", 1.0, _speed("streams", "32 streams", "plain", "engine_ms"),
           is_most=True, unit="ms"),
    Target("9. step with 10,000 waiting, beside 10", 1.2, _flat, is_most=True),
    *(
        Target(f"12. step with adapters beside the base, {name}", limit, _at("adapters", name, "x_base"), is_most=True)
        for name, limit in (("1 stream", 1.08), ("8 streams, 8 adapters", 1.12), ("32 streams, 1 adapter", 1.06),
                            ("32 streams, 32 adapters", 1.30))
    ),
    Target("10. tokens/s when streams double, at worst", 0.9, _worst_doubling("concurrency")),
    Target("10. tokens/s when context doubles, at worst, 1 stream", 0.6, _worst_doubling("context", 1)),
    Target("10. the same, 8 streams", 0.5, _worst_doubling("context", 8)),
    *(
        Target(f"11. ready on a second start, {name}", 6.0, _at("startup", "models", name, "ready_s"),
               is_most=True, unit="s")
        for name in ("smollm2-135m-instruct", "sentiment", "rampart", "all three")
    ),
)  # fmt: skip
