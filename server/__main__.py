"""``sluice`` and ``python -m server``: reads the command line and hands over.

Nothing heavy is imported before a command needs it: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from server import __version__, settings
from server.errors import EXIT_CONFIG, ConfigurationError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the page of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CONFIG, f"{self.prog}: {message} (--help shows what there is)\n")


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return EXIT_CONFIG
    if unknown:
        flags = [setting.flag for setting in settings.settings().values()] if options.command == "serve" else []
        parser.error(f"{unknown[0]} is not known here.{settings.did_you_mean(unknown[0].split('=')[0], flags)}")
    try:
        return _run(options)
    except ConfigurationError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="sluice", description="Serve and train fine-tuned language models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve model folders over HTTP",
        description="Serve Hugging Face model folders and LoRA adapters over HTTP.",
        allow_abbrev=False,
    )
    settings.add_flags(serve)
    from server.finetune import cli

    cli.add_parsers(commands)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "serve":
        config = settings.load(options)
        from server.client.template import Template

        # Its imports take seconds: it is at them while this process is at its own.
        template = Template.start(config.models)
        from server.api.run import serve

        return serve(config, template)
    from server.finetune import cli

    return cli.run(options)


if __name__ == "__main__":
    sys.exit(main())
