"""What Grafana's dashboard in deploy/ asks of Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/sluice.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every one, its variables filled in."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [re.sub(r"\$\w+", lambda name: {"$__rate_interval": "1m"}.get(name[0], ".*"), text) for text in found]
