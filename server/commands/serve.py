"""Serve Hugging Face model folders and LoRA adapters over HTTP.

    sluice serve ./my-llama
    sluice serve chat=./my-llama mood=./my-classifier --port 9000
    sluice serve --config sluice.toml

Flags win over variables, variables over the file: sluice config show --origin tells who won.
"""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace

from server import settings
from server.commands.room import require_room


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [PATH ...] [--plan] [flags, all of them below]"
    settings.add_flags(parser)
    parser.add_argument(
        "--plan", action="store_true", help="Only show what would be loaded and how much memory it needs."
    )


def run(options: Namespace) -> int:
    if options.plan:
        from server.commands import plan

        return plan.run(options)
    # Until the server answers signals itself: who asks it to stop gets exit code 0 from the beginning.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = settings.load(options)
    require_room(config)
    from server.client.template import Template

    # Its imports take seconds: it is at them while this process is at its own.
    template = Template.start(config.models)
    from server.api.run import serve

    return serve(config, template)
