"""The bench's results as pictures for the README. A part that was not measured has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from part_timer import PARTS

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

FOLDER = Path(__file__).parent / "plots"

STYLE = {
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "sluice",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}
COLOURS = {"plain": "#1f6fb4", "int8": "#d9662b", "static batch": "#8a8a8a", "deterministic": "#3a8f5c"}
PART_COLOURS = ("#1f4e79", "#4a86c5", "#d9662b", "#e9b44c", "#b9b9b9", "#3a8f5c", "#8f5c9e", "#555555", "#9c2f2f")

Results = Mapping[str, Any]


def draw(results: Results, cpu: str, folder: Path) -> list[Path]:
    """One file for each picture that there are numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, (parts, picture) in PICTURES.items():
        if not all(part in results for part in parts):
            continue
        with pyplot.rc_context(STYLE):
            figure = picture(results)
            figure.text(0.995, 0.005, cpu, ha="right", va="bottom", fontsize=7, color="#777777")
            path = folder / f"{name}.svg"
            # Without the date, so that the same numbers give the same file.
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
        drawn.append(path)
    return drawn


def beside_generate(results: Results) -> Any:
    """Output tokens a second at 1, 8 and 32 streams, beside one static batch."""
    part = results["streams"]
    cases = [name for name in part if name.endswith(" streams")]
    sides = [side for side in ("static batch", "plain", "int8") if side in part[cases[0]]["sides"]]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        heights = [part[case]["sides"][side]["tokens_per_s"] for case in cases]
        places = [place + (i - (len(sides) - 1) / 2) * width for place in range(len(cases))]
        label = "generate, static batch" if side == "static batch" else _label(side, part)
        axes.bar(places, heights, width * 0.92, label=label, color=COLOURS[side])
        for place, case, height in zip(places, cases, heights, strict=True):
            times = part[case]["sides"][side]["x_static"]
            text = f"{height:.0f}" if side == "static batch" else f"{height:.0f}\n{times:.1f}x"
            axes.annotate(text, (place, height), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(cases)), [case.replace("1 streams", "1 stream") for case in cases])
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    _name(axes, "Output over HTTP, 128-token prompts, 64 new tokens", "", "output tokens/s")
    return figure


def by_concurrency(results: Results) -> Any:
    """Tokens a second against concurrent streams."""
    points = results["concurrency"]["points"]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    for side in points[0]["sides"]:
        speeds = [point["sides"][side]["tokens_per_s"] for point in points]
        axes.plot([point["streams"] for point in points], speeds, "o-", color=COLOURS[side], label=_label(side))
    _powers_of_two(axes, [point["streams"] for point in points])
    axes.set_ylim(bottom=0)
    prompt, new = results["concurrency"]["prompt_tokens"], results["concurrency"]["new_tokens"]
    _name(axes, f"Tokens a second against concurrency, {prompt}-token prompts, {new} new", "concurrent streams",
          "output tokens/s")  # fmt: skip
    return figure


def by_context(results: Results) -> Any:
    """Time of a step against length of context."""
    points = results["context"]["points"]
    sizes = sorted({point["streams"] for point in points})
    figure, all_axes = pyplot.subplots(1, len(sizes), figsize=(8.4, 3.4), squeeze=False)
    for axes, size in zip(all_axes[0], sizes, strict=True):
        mine = [point for point in points if point["streams"] == size]
        contexts = [point["context"] for point in mine]
        for side in mine[0]["sides"]:
            speeds = [1e3 * size / point["sides"][side]["decode_ms"] for point in mine]
            axes.plot(contexts, speeds, "o-", color=COLOURS[side], label=_label(side))
        _powers_of_two(axes, contexts)
        axes.set_ylim(bottom=0)
        _name(axes, "1 stream" if size == 1 else f"{size} streams", "tokens of context", "output tokens/s")
    figure.tight_layout()
    return figure


def by_rate(results: Results) -> Any:
    """Latency against the rate of arrivals."""
    points = results["rates"]["points"]
    figure, all_axes = pyplot.subplots(1, 2, figsize=(8.4, 3.4))
    for axes, kind, title in zip(all_axes, ("ttft", "gap"), ("Time to first token", "Gap between tokens"), strict=True):
        for side in dict.fromkeys(point["side"] for point in points):
            mine = [point for point in points if point["side"] == side and point[f"{kind}_p50_s"] is not None]
            for percent, line in ((50, "o-"), (95, "o--")):
                times = [1e3 * point[f"{kind}_p{percent}_s"] for point in mine]
                label = f"{_label(side)}, p{percent}"
                axes.plot([point["rate"] for point in mine], times, line, color=COLOURS[side], label=label)
        axes.set_ylim(bottom=0)
        _name(axes, title, "requests a second", "ms")
    figure.tight_layout()
    return figure


def step_breakdown(results: Results) -> Any:
    """A step by part, and what the served step has besides."""
    variants = {name: found for name, found in results["steps"].items() if isinstance(found, dict) and "steps" in found}
    bars = [(name, each) for name, found in variants.items() for each in found["steps"]]
    figure, axes = pyplot.subplots(figsize=(7.2, 0.5 + 0.5 * len(bars)))
    labels = [f"{_label(name)}, {each['rows']} row{'s' if each['rows'] > 1 else ''}" for name, each in bars]
    left = [0.0] * len(bars)
    outside = [_outside_ms(results, name, each["rows"]) for name, each in bars]
    columns = [(part, [each["parts_ms"][part] for _, each in bars]) for part in PARTS]
    for (part, widths), colour in zip([*columns, ("front, wire and client", outside)], PART_COLOURS, strict=False):
        axes.barh(labels, widths, left=left, label=part, color=colour, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for label, end in zip(labels, left, strict=True):
        axes.annotate(f" {end:.1f}", (end, label), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    context = next(iter(variants.values()))["context"]
    _name(axes, f"One decoding step by part, {context} tokens of context", "ms", "", legend=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def steady_gaps(results: Results) -> Any:
    """Gaps of running streams without and with long prompts coming in."""
    sides = results["steady"]["sides"]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.2))
    bars = [(side, when, percent) for side in sides for when in ("without", "with") for percent in (50, 95)]
    for place, (side, when, percent) in enumerate(bars):
        height = sides[side][when][f"gap_p{percent}_ms"]
        axes.bar(place, height, 0.8, color=COLOURS[side], alpha=1.0 if percent == 50 else 0.55)
        axes.annotate(f"{height:.0f}", (place, height), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(bars)), [f"p{percent}\n{when}" for _, when, percent in bars], fontsize=8)
    for side in sides:
        axes.bar(0, 0, color=COLOURS[side], label=_label(side, results.get("streams")))
    axes.grid(axis="x", visible=False)
    tokens = results["steady"]["long_prompt_tokens"]
    _name(axes, f"Gaps of 8 streams without and with a {tokens:,}-token prompt a second", "", "ms")
    return figure


PICTURES: dict[str, tuple[Sequence[str], Callable[[Results], Any]]] = {
    "beside-generate": (("streams",), beside_generate),
    "step-breakdown": (("steps",), step_breakdown),
    "concurrency": (("concurrency",), by_concurrency),
    "context": (("context",), by_context),
    "rates": (("rates",), by_rate),
    "steady": (("steady",), steady_gaps),
}
"""By file name: the parts that it is drawn from, and how."""


def _outside_ms(results: Results, side: str, rows: int) -> float:
    """What a served step takes besides the engine's own."""
    try:
        return max(0.0, float(results["streams"][f"{rows} streams"]["sides"][side]["between_steps_ms"]))
    except KeyError:
        return 0.0


def _label(side: str, part: Results | None = None) -> str:
    dtype = part["facts"][side]["dtype"] if part and side in part.get("facts", ()) else "bfloat16"
    return {"bfloat16": "bf16", "float32": "fp32"}.get(dtype, dtype) if side == "plain" else side


def _powers_of_two(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()


def _name(axes: Axes, title: str, x: str, y: str, *, legend: bool = True) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        axes.legend(fontsize=8)
