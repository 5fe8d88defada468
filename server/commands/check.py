"""Tell whether this machine can serve these models, without loading them, and what to do where it cannot.

    sluice check
    sluice check ./my-llama --port 9000

Takes all flags of ``sluice serve``; without a model it looks at the machine alone. Exit code 0 where nothing is in the
way, else that of serve.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict

from server import settings
from server.commands.findings import Finding
from server.commands.terminal import Style
from server.config import ServeConfig
from server.errors import EXIT_CONFIG, ConfigurationError

COLOURS = {"ok": "green", "note": "yellow", "fail": "red"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [--json] [PATH ...] [any flag of sluice serve]"
    parser.add_argument("--json", action="store_true", help="Print a JSON list.")
    settings.add_flags(parser)


def run(options: Namespace) -> int:
    findings = []
    style = Style.of(sys.stdout)
    for finding in _findings(options):
        findings.append(finding)
        if not options.json:
            print(f"{style.paint(f'{finding.kind:<4}', COLOURS[finding.kind])}  {finding.text}", flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return next((finding.exit_code for finding in findings if finding.kind == "fail"), 0)


def _findings(options: Namespace) -> Iterator[Finding]:
    """One after another, because some take seconds."""
    config: ServeConfig | None = None
    try:
        if settings.gather(options, os.environ).models:
            config = settings.load(options, os.environ)
            number = len(config.models)
            text = "1 model, its folder is there" if number == 1 else f"{number} models, all folders are there"
            yield Finding("ok", f"settings: {text}")
        else:
            yield Finding("note", "settings: no model is named; only the machine is checked")
    except ConfigurationError as error:
        yield Finding("fail", str(error), error.exit_code)
    from server.commands import findings

    yield from findings.of_packages()
    if findings.are_missing():
        yield Finding("fail", "packages are missing; no further checks are possible", EXIT_CONFIG)
        return
    yield from findings.of_processor(config)
    if config is not None:
        yield from findings.of_port(config)
        yield from findings.of_models(config)
