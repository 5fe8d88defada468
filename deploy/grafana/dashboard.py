"""Writes the Grafana dashboard: ``python deploy/grafana/dashboard.py``.

Grafana's JSON says everything many times; this says it once. A panel is a title, a unit and its expressions; rows are
laid out by themselves. ``SELECTED`` stands for the labels that the variables at the top of the page choose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboards") / "sluice.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
MODELS = 'model=~"$model_name", instance=~"$instance"'
REPLICAS = 'job="sluice", instance=~"$instance"'
WIDTH = 24
RATE = "[$__rate_interval]"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel; ``expressions`` by their legend."""

    title: str
    unit: str
    expressions: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    text: str = ""
    """What a reader should know of it, shown at the panel's corner."""


def rate(metric: str, by: str = "model", labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{MODELS}{labels}}}{RATE}))"


def total(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) ({metric}{{{MODELS}}})"


def quantile(share: float, metric: str, by: str = "model") -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le')})"


def mean(metric: str) -> str:
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def quantiles(title: str, metric: str, by: str = "model", text: str = "") -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    shares = {f"{legend} p{share * 100:.0f}": quantile(share, metric, by) for share in (0.5, 0.95, 0.99)}
    return Panel(title=title, unit="s", expressions=shares, text=text)


def heatmap(title: str, metric: str) -> Panel:
    counts = {"{{le}}": f"sum by (le) (increase({metric}_bucket{{{MODELS}}}{RATE}))"}
    return Panel(title=title, unit="s", expressions=counts, kind="heatmap")


def stat(title: str, unit: str, expression: str, text: str = "") -> Panel:
    return Panel(title=title, unit=unit, expressions={"": expression}, kind="stat", width=4, height=4, text=text)


def series(title: str, unit: str, expressions: dict[str, str], *, width: int = 8, text: str = "") -> Panel:
    return Panel(title=title, unit=unit, expressions=expressions, width=width, text=text)


ALL_REQUESTS = f"sum(rate(sluice_requests_total{{{MODELS}}}{RATE}))"
FAILED_REQUESTS = f'sum(rate(sluice_requests_total{{{MODELS}, status="5xx"}}{RATE}))'

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        stat("Requests", "reqps", ALL_REQUESTS),
        stat("Failed", "percentunit", f"({FAILED_REQUESTS} or vector(0)) / {ALL_REQUESTS}", "Answered with a 5xx."),
        stat("First token, p95", "s", f"max({quantile(0.95, 'sluice_time_to_first_token_seconds')})"),
        stat("Between tokens, p95", "s", f"max({quantile(0.95, 'sluice_inter_token_seconds')})"),
        stat("Output tokens a second", "short", f"sum({rate('sluice_output_tokens_total')})"),
        stat("Replicas that answer", "short", f"sum(up{{{REPLICAS}}})"),
    ],
    "Latency": [
        quantiles("First token", "sluice_time_to_first_token_seconds", text="From the request's arrival."),
        quantiles("Between tokens", "sluice_inter_token_seconds"),
        quantiles("Whole requests", "sluice_request_seconds", "model, task"),
        heatmap("First token", "sluice_time_to_first_token_seconds"),
        heatmap("Between tokens", "sluice_inter_token_seconds"),
        heatmap("Whole requests", "sluice_request_seconds"),
    ],
    "Requests": [
        series("Ended, by status", "reqps", {"{{task}} {{status}}": rate("sluice_requests_total", "task, status")}),
        series("Refused or failed, by reason", "reqps", {"{{reason}}": rate("sluice_rejections_total", "reason")}),
        series("Clients that left", "reqps", {"{{model}}": rate("sluice_client_disconnects_total")}),
    ],
    "Queue and batch": [
        series(
            "Running and waiting",
            "short",
            {
                "{{model}} running": total("sluice_running_requests"),
                "{{model}} waiting": total("sluice_waiting_requests"),
                "{{model}} admitted": total("sluice_admitted_requests"),
            },
        ),
        quantiles("In the queue", "sluice_queue_seconds", text="Until the first step that computes any of it."),
        series("Tokens of admitted work", "short", {"{{model}}": total("sluice_admitted_tokens")}),
        series("Sequences a step", "short", {"{{model}}": mean("sluice_batch_requests")}),
        series("Tokens a step", "short", {"{{model}}": mean("sluice_batch_tokens")}),
        quantiles("One step", "sluice_step_seconds"),
    ],
    "Tokens": [
        series(
            "Tokens a second",
            "short",
            {
                "{{model}} prompt": rate("sluice_prompt_tokens_total"),
                "{{model}} output": rate("sluice_output_tokens_total"),
                "{{model}} computed": rate("sluice_computed_tokens_total"),
            },
        ),
        series("Tokens of a prompt", "short", {"{{model}}": mean("sluice_request_prompt_tokens")}),
        series("Tokens of an answer", "short", {"{{model}}": mean("sluice_request_output_tokens")}),
        series(
            "Guessed tokens that came true",
            "percentunit",
            {"{{model}}": f"{rate('sluice_accepted_tokens_total')} / {rate('sluice_drafted_tokens_total')}"},
        ),
        series(
            "Padding",
            "percentunit",
            {
                "{{model}}": f"{rate('sluice_padded_tokens_total')} / "
                f"({rate('sluice_padded_tokens_total')} + {rate('sluice_computed_tokens_total')})"
            },
            text="Part of the computed places that held no token.",
        ),
        series("In the forward pass", "percentunit", {"{{model}}": rate("sluice_forward_seconds_total")}),
    ],
    "KV cache": [
        series("Used", "percentunit", {"{{model}} {{instance}}": total("sluice_kv_usage_ratio", "model, instance")}),
        series(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            {"{{model}}": f"{rate('sluice_prefix_hit_tokens_total')} / {rate('sluice_prefix_query_tokens_total')}"},
        ),
        series(
            "Preemptions", "ops", {"{{model}}": rate("sluice_preemptions_total")}, text="Above 0 the cache is small."
        ),
        series(
            "Blocks",
            "short",
            {"{{model}} used": total("sluice_kv_blocks_used"), "{{model}} all": total("sluice_kv_blocks")},
        ),
        series("Size", "bytes", {"{{model}}": total("sluice_kv_cache_bytes")}),
        series("Weights", "bytes", {"{{model}}": total("sluice_model_weight_bytes")}),
    ],
    "Process": [
        series(
            "Worker restarts",
            "short",
            {"{{model}} {{instance}}": f"increase(sluice_worker_restarts_total{{{MODELS}}}{RATE})"},
            width=6,
        ),
        series(
            "Since the last step, with work",
            "s",
            {
                "{{model}} {{instance}}": f"sluice_last_step_age_seconds{{{MODELS}}} "
                f"and on (job, instance, model) sluice_admitted_requests{{{MODELS}}} > 0"
            },
            width=6,
            text="Grows where an engine is stuck.",
        ),
        series("Load time", "s", {"{{model}} {{instance}}": f"sluice_model_load_seconds{{{MODELS}}}"}, width=6),
        series(
            "Log lines dropped",
            "short",
            {"{{instance}}": f"increase(sluice_log_lines_dropped_total{{{REPLICAS}}}{RATE})"},
            width=6,
        ),
        series(
            "Front: processor", "percentunit", {"{{instance}}": f"rate(process_cpu_seconds_total{{{REPLICAS}}}{RATE})"}
        ),
        series("Front: memory", "bytes", {"{{instance}}": f"process_resident_memory_bytes{{{REPLICAS}}}"}),
        series("Front: open files", "short", {"{{instance}}": f"process_open_fds{{{REPLICAS}}}"}),
    ],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"},
    "timeseries": {
        "tooltip": {"mode": "multi", "sort": "desc"},
        "legend": {"displayMode": "list", "placement": "bottom"},
    },
    "heatmap": {"calculate": False, "yAxis": {"unit": "s"}, "color": {"mode": "scheme", "scheme": "Blues"}},
}


def render(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel in Grafana's words, at its place."""
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for index, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }


def laid_out(rows: dict[str, list[Panel]]) -> Iterator[dict[str, Any]]:
    """Every row's title and panels, from left to right and down the page."""
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + panel.height
            number += 1
            yield render(panel, number, x, y)
            x += panel.width
        y += panels[-1].height


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of several values of a label, all of them at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "sluice",
        "title": "Sluice",
        "tags": ["sluice"],
        "schemaVersion": 36,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                variable("model_name", "Model", "label_values(sluice_model_load_seconds, model)"),
                variable("instance", "Replica", 'label_values(up{job="sluice"}, instance)'),
            ]
        },
        "panels": list(laid_out(ROWS)),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
