"""A load test's results as one page with its plots inside, and each plot as a PNG file beside it.

python loadtest/load_report.py loadtest/results/load-short-chat-20260101-120000.json
"""

from __future__ import annotations

import argparse
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from plots import STYLE

Point = Mapping[str, Any]

PERCENTS = {50: "#1f6fb4", 95: "#d9662b", 99: "#8a8a8a"}
OUTCOMES = {"good": "#3a8f5c", "late": "#e9b44c", "refused": "#8a8a8a", "failed": "#9c2f2f"}
PHASES = {"queue": "#b9b9b9", "prefill": "#4a86c5", "decode": "#1f4e79"}


def write(path: Path) -> Path:
    """The page of the results in ``path``; returns where it is."""
    content = json.loads(path.read_text(encoding="utf-8"))
    pictures = []
    for name, (title, draw) in PICTURES.items():
        with pyplot.rc_context(STYLE):
            figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
            is_drawn = draw(axes, content)
            axes.set_title(title, loc="left")
            if is_drawn:
                figure.savefig(path.with_name(f"{path.stem}-{name}.png"), dpi=150, bbox_inches="tight")
                pictures.append((title, _svg(figure)))
            pyplot.close(figure)
    page = path.with_suffix(".html")
    page.write_text(_page(content, pictures), encoding="utf-8")
    return page


def _svg(figure: Any) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None})
    return written.getvalue().partition("<svg")[1] + written.getvalue().partition("<svg")[2]


def _times(axes: Axes, points: Sequence[Point], kind: str, limit_ms: float | None) -> bool:
    known = [point for point in points if point[f"{kind}_p50_s"] is not None]
    for percent, colour in PERCENTS.items():
        values = [1e3 * point[f"{kind}_p{percent}_s"] for point in known]
        axes.plot([point["rate"] for point in known], values, "o-", color=colour, label=f"p{percent}")
    if limit_ms:
        axes.axhline(limit_ms, color="#9c2f2f", linestyle=":", label="limit")
    axes.set_yscale("log")
    axes.set_xlabel("requests a second offered")
    axes.set_ylabel("ms")
    axes.legend(fontsize=8)
    return bool(known)


def _by_rate(kind: str) -> Callable[[Axes, Mapping[str, Any]], bool]:
    return lambda axes, content: _times(
        axes, content["results"]["open"], kind, content["scenario"]["limits"][f"{kind}_ms"]
    )


def _throughput_by_clients(axes: Axes, content: Mapping[str, Any]) -> bool:
    points = content["results"]["closed"]
    has_tokens = any(point["tokens_per_s"] for point in points)
    key, unit = ("tokens_per_s", "output tokens/s") if has_tokens else ("answered_per_s", "answers/s")
    axes.plot([point["clients"] for point in points], [point[key] for point in points], "o-", color=PERCENTS[50])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients that each wait for their answer")
    axes.set_ylabel(unit)
    return bool(points)


def _latency_by_throughput(axes: Axes, content: Mapping[str, Any]) -> bool:
    points = [point for point in content["results"]["open"] if point["total_p50_s"] is not None]
    for percent in (50, 95):
        values = [1e3 * point[f"total_p{percent}_s"] for point in points]
        axes.plot([point["answered_per_s"] for point in points], values, "o-", color=PERCENTS[percent],
                  label=f"p{percent}")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("answers a second")
    axes.set_ylabel("time of a whole answer, ms")
    axes.legend(fontsize=8)
    return bool(points)


def _outcomes(axes: Axes, content: Mapping[str, Any]) -> bool:
    points = content["results"]["open"]
    shares = {name: [point["outcomes"].get(name, 0) / max(1, point["num_requests"]) for point in points]
              for name in OUTCOMES}  # fmt: skip
    _stack(axes, [f"{point['rate']:g}" for point in points], shares, OUTCOMES)
    axes.set_xlabel("requests a second offered")
    axes.set_ylabel("part of the requests")
    return bool(points)


def _breakdown(axes: Axes, content: Mapping[str, Any]) -> bool:
    points = [point for point in content["results"]["open"] if point["ttft_p50_s"] is not None]
    queue = [1e3 * (point["queue_p50_s"] or 0.0) for point in points]
    first = [1e3 * point["ttft_p50_s"] for point in points]
    total = [1e3 * point["total_p50_s"] for point in points]
    heights = {
        "queue": queue,
        "prefill": [max(0.0, end - begin) for begin, end in zip(queue, first, strict=True)],
        "decode": [max(0.0, end - begin) for begin, end in zip(first, total, strict=True)],
    }
    _stack(axes, [f"{point['rate']:g}" for point in points], heights, PHASES)
    axes.set_xlabel("requests a second offered")
    axes.set_ylabel("ms, medians")
    return bool(points)


def _efficiency(axes: Axes, content: Mapping[str, Any]) -> bool:
    points = [point for point in [*content["results"]["open"], *content["results"]["closed"]] if point["mean_active"]]
    points = sorted((point for point in points if point["tokens_per_s"]), key=lambda each: float(each["mean_active"]))
    axes.plot([point["mean_active"] for point in points],
              [point["tokens_per_s"] / point["mean_active"] for point in points], "o-", color=PERCENTS[50])  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests under way, in the mean")
    axes.set_ylabel("tokens/s of each")
    return bool(points)


def _stack(axes: Axes, labels: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    bottom = [0.0] * len(labels)
    for name, heights in parts.items():
        axes.bar(labels, heights, bottom=bottom, label=name, color=colours[name], width=0.7)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8)


PICTURES: dict[str, tuple[str, Callable[[Axes, Mapping[str, Any]], bool]]] = {
    "ttft": ("Time to first token by rate", _by_rate("ttft")),
    "gap": ("Gap between tokens by rate", _by_rate("gap")),
    "total": ("Time of a whole answer by rate", _by_rate("total")),
    "latency-throughput": ("Latency by throughput", _latency_by_throughput),
    "outcomes": ("What became of the requests", _outcomes),
    "breakdown": ("Where the time goes", _breakdown),
    "peak": ("Throughput by clients", _throughput_by_clients),
    "efficiency": ("What each request gets", _efficiency),
}
"""By the end of its file's name: title, and what draws it; false where there is nothing to draw."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} .facts {{ color: #666; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1.5rem; }}
.plots svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }}
th, td {{ text-align: right; padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; }}
</style>
<h1>{title}</h1>
<p class="facts">{facts}</p>
<table><tr>{header}</tr>{rows}</table>
<div class="plots">{plots}</div>
</html>
"""


def _page(content: Mapping[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    from run import HEADER, row

    scenario, machine, knee = content["scenario"], content["machine"], content["results"]["knee"]
    models = ", ".join(_model(model) for model in (content["server"] or {}).get("models", ()))
    limits = ", ".join(f"{name} {value:g}" for name, value in scenario["limits"].items() if value)
    facts = [
        scenario["description"],
        models,
        f"{machine['cpu']}, {machine['cpus']} processors",
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        f"limits: {limits}" if limits else "",
        f"kept up to {knee:g} requests a second" if knee else "",
    ]
    points = [*content["results"]["open"], *content["results"]["closed"]]
    return PAGE.format(
        title=html.escape(f"Load test: {scenario['name']}"),
        facts=html.escape(". ".join(fact for fact in facts if fact)),
        header=_cells("th", HEADER),
        rows="".join(f"<tr>{_cells('td', row(point))}</tr>" for point in points),
        plots="".join(f'<figure aria-label="{html.escape(title)}">{svg}</figure>' for title, svg in pictures),
    )


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _model(model: Mapping[str, Any]) -> str:
    return f"{model.get('name')} ({model.get('architecture')}, {model.get('dtype')}, {model.get('executor')})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the JSON file that run.py has written")
    path = parser.parse_args().results
    try:
        print(write(path))
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{path} is not the results of a load test: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
