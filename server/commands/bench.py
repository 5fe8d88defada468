"""Measure how fast a server generates: time to the first token, gaps between tokens, tokens a second.

    sluice bench ./my-llama --streams 8
    sluice bench --url http://host:8000 --rate 2 --requests 60

With --streams, each stream begins its next request when it has an answer (closed loop): what the server can do at most.
With --rate, requests arrive by chance, so many a second (open loop): what users see at that load. Prompts are random
words, no two alike; outputs have exactly the length that is asked for. For more than a look, use loadtest/.
"""

from __future__ import annotations

import json
import sys
import threading
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from server import __version__
from server.commands import connected as connections
from server.commands import measurement
from server.commands.clients import Clients
from server.commands.http_client import Client
from server.commands.measurement import Prompts, Sample
from server.commands.progress import Progress
from server.commands.terminal import table
from server.errors import ConfigurationError

EXIT_FAILED = 1
AT_LEAST_1 = ("streams", "requests", "prompt_tokens", "new_tokens")


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [MODEL-FOLDER | --url URL] [--streams N | --rate N] [flags, all below]"
    parser.add_argument("folder", nargs="?", metavar="MODEL-FOLDER", help="The model or adapter to measure.")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--streams", type=int, default=1, metavar="N", help="Concurrent requests. (default: 1)")
    load.add_argument("--rate", type=float, metavar="N", help="Requests per second, instead of --streams.")
    parser.add_argument(
        "--requests", type=int, metavar="N", help="Total number of requests. (default: 8 for each stream; 32)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="About. (default: 128)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="Exactly. (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of words and arrivals. (default: 0)")
    parser.add_argument(
        "--json", metavar="FILE", help="Also write the numbers to a file; - writes them to stdout instead of the table."
    )
    connections.add_arguments(parser)


def run(options: Namespace) -> int:
    options.requests = options.requests or (8 * options.streams if options.rate is None else 32)
    for name in AT_LEAST_1:
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--{flag} is {getattr(options, name)}: it must be at least 1.")
    if options.rate is not None and options.rate <= 0:
        raise ConfigurationError(f"--rate is {options.rate}: it must be above 0.")
    with connections.connected(options, options.folder) as client:
        model = connections.find_model(client, options.name, ("generate",), "generate")
        samples = _measure(client, model["name"], options)
    report = _report(options, model, measurement.summary(samples))
    _write(report, options.json)
    errors = [sample.error for sample in samples if sample.error]
    if errors:
        sys.stderr.write(f"{len(errors)} of {len(samples)} requests failed, the first one: {errors[0]}\n")
    return EXIT_FAILED if errors else 0


def _measure(client: Client, model: str, options: Namespace) -> list[Sample]:
    prompts = Prompts(options.prompt_tokens, options.seed)
    # The first request finds out how many tokens the words are, and pays for what a first request pays for.
    text, num_words = prompts.next()
    trial = measurement.ask(client, model, text, 1)
    if trial.error:
        raise ConfigurationError(f"The first request failed: {trial.error}", exit_code=EXIT_FAILED)
    prompts.calibrate(num_words, trial.num_prompt_tokens)
    progress = Progress("requests", options.requests)
    clients = Clients(client)
    lock = threading.Lock()

    def one() -> Sample:
        sample = measurement.ask(clients.mine(), model, prompts.next()[0], options.new_tokens)
        with lock:
            progress.advance()
        return sample

    is_closed = options.rate is None
    with clients.pool(options.streams if is_closed else options.requests) as pool:
        if is_closed:
            samples = measurement.closed_loop(pool, one, options.requests)
        else:
            samples = measurement.open_loop(pool, one, options.requests, options.rate, options.seed)
    progress.finish()
    return samples


def _report(options: Namespace, model: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    load = {"streams": options.streams} if options.rate is None else {"rate": options.rate}
    facts = ("name", "architecture", "device", "dtype", "executor", "num_parameters")
    return {
        "version": __version__,
        "model": {name: model[name] for name in facts if name in model},
        "load": {
            **load,
            "prompt_tokens": options.prompt_tokens,
            "new_tokens": options.new_tokens,
            "seed": options.seed,
        },
        "results": results,
    }


def _write(report: dict[str, Any], path: str | None) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    if path is not None:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{path} cannot be written: {error.strerror}.\n")
    sys.stdout.write("\n".join(_lines(report)) + "\n")


def _lines(report: dict[str, Any]) -> list[str]:
    model, load, results = report["model"], report["load"], report["results"]
    how = f"{load['streams']} concurrent" if "streams" in load else f"{load['rate']:g} per second, at random"
    lines = [
        f"{model['name']}  {model.get('architecture', '')}, {model.get('dtype', '')} on {model.get('device', '')}",
        f"{results['num_requests']} requests, {how}; {results['num_failed']} failed",
    ]
    if "duration_s" not in results:
        return lines
    lines += [
        f"{results['prompt_tokens']:.0f} prompt tokens and {results['new_tokens']:.0f} new tokens each on average",
        "",
    ]
    rows = [["", "p50", "p95"]]
    for label, name in (("time to first token", "ttft_s"), ("gap between tokens", "gap_s")):
        if name in results:
            rows.append([label, *(f"{1000 * results[name][part]:.1f} ms" for part in ("p50", "p95"))])
    rows.append(["tokens/s", f"{results['tokens_per_s']:.1f}", ""])
    rows.append(["requests/s", f"{results['requests_per_s']:.2f}", ""])
    return [*lines, *table(rows, right=(1, 2))]
