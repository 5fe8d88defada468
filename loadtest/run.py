"""Load tests of a running server: latency against rate, peak, and the highest rate at which its limits are kept.

    python loadtest/run.py --url http://127.0.0.1:8000 --scenario short-chat
    python loadtest/run.py --scenario mixed --rates 1 2 4 --duration 60 --search 3
    python loadtest/run.py --scenario my-own.toml --only open
    python loadtest/run.py --list

Writes a JSON file and, beside it, a page with plots. Times are of one machine and one run: compare within it, or
with loadtest/compare_runs.py where nothing but the server changed.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import load
import scenarios
from client import key_headers
from client import run as run_loop
from report import save, table

HEADER = ["load", "answered/s", "tokens/s", "TTFT p50 ms", "p95", "gap p50 ms", "p95", "total p50 ms", "p95",
          "within limits", "errors", "client CPU"]  # fmt: skip


def row(point: dict[str, Any]) -> list[str]:
    times = [point[f"{kind}_p{p}_s"] for kind in ("ttft", "gap", "total") for p in (50, 95)]
    good = point["good_share"]
    return [
        f"{point['rate']:g}/s" if "rate" in point else f"{point['clients']} clients",
        f"{point['answered_per_s']:.2f}",
        f"{point['tokens_per_s']:.1f}",
        *("-" if value is None else f"{value * 1000:.0f}" for value in times),
        "-" if good is None else f"{good:.0%}",
        str(point["num_requests"] - point["num_whole"]),
        f"{point['client_cpu']:.0%}",
    ]


def facts(url: str) -> Any:
    """What the server tells of itself; None where it tells nothing."""
    request = urllib.request.Request(url + "/info", headers=key_headers())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None


async def measure(args: argparse.Namespace, scenario: scenarios.Scenario) -> dict[str, Any]:
    """The points of both loops, each said as it comes."""
    url = args.url.rstrip("/")
    if args.warm_up:
        await load.closed_loop(url, scenario, 1, args.warm_up, args.seed + 1)
    found: dict[str, list[dict[str, Any]]] = {"open": [], "closed": []}
    if args.only != "closed":
        for rate in scenario.rates:
            found["open"].append(await load.open_loop(url, scenario, rate, args.duration, args.seed))
            say(found["open"][-1])
        await load.search_knee(url, scenario, found["open"], args.duration, args.seed, args.search)
    if args.only != "open":
        for clients in scenario.clients:
            found["closed"].append(await load.closed_loop(url, scenario, clients, args.duration, args.seed))
            say(found["closed"][-1])
    return {**found, "knee": load.knee(found["open"]) if found["open"] else None}


def say(point: dict[str, Any]) -> None:
    shown = row(point)
    print(f"{shown[0]}: {point['num_whole']} of {point['num_requests']} whole, {shown[2]} tokens/s", flush=True)
    if point["errors"]:
        print(f"    errors: {point['errors']}")
    if not point["client_kept_up"]:
        print("    the client itself was late or busy: these numbers are not the server's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--scenario", default="short-chat", help="a name, see --list, or a TOML file")
    parser.add_argument("--list", action="store_true", help="the scenarios that there are")
    parser.add_argument("--only", choices=["open", "closed"], help="one of the two loops")
    parser.add_argument("--rates", type=float, nargs="+", help="arrivals a second, instead of the scenario's")
    parser.add_argument("--clients", type=int, nargs="+", help="of the closed loop, instead of the scenario's")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds at each rate and number of clients")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before, which count for nothing")
    parser.add_argument("--search", type=int, default=0, help="so many rates more, to find the highest good one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, help="the JSON file; else a new one in loadtest/results/")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:16}{scenarios.load(name).description}" for name in scenarios.names()))
        return 0
    # Now, and not after minutes of measuring.
    if not args.url.startswith("http://"):
        parser.error(f"--url is {args.url}: it must begin with http://")
    if args.duration <= 0:
        parser.error(f"--duration is {args.duration:g}: it must be above 0")
    if args.into and not args.into.parent.is_dir():
        parser.error(f"--into is {args.into}: there is no folder {args.into.parent}")
    try:
        scenario = scenarios.load(args.scenario)
        given = {"rates": args.rates, "clients": args.clients}
        scenario = replace(scenario, **{name: values for name, values in given.items() if values})
    except (scenarios.ScenarioError, ValueError) as error:
        parser.error(str(error))
    results = run_loop(measure(args, scenario))
    points = results["open"] + results["closed"]
    print(table(HEADER, [row(point) for point in points]))
    if results["open"]:
        best = results["knee"]
        limits = ", ".join(f"{name} {value:g}" for name, value in asdict(scenario.limits).items() if value)
        said = "no rate that was tried" if best is None else f"up to {best:g} requests a second"
        print(f"{load.GOOD_SHARE:.0%} within the limits ({limits or 'none but whole answers'}): {said}")
    server = facts(args.url.rstrip("/"))
    content = {"arguments": vars(args), "scenario": asdict(scenario), "server": server, "results": results}
    path = save(f"load-{scenario.name}", content, into=args.into)
    # Here, because matplotlib takes a second.
    import load_report

    print(f"page: {load_report.write(path)}")
    print(f"saved to {path}")
    return 0 if any(point["num_whole"] for point in points) else 1


if __name__ == "__main__":
    raise SystemExit(main())
