"""``sluice`` and ``python -m server``: reads the command line and hands over.

A command's module is imported when that command is asked for, and what is heavy when it runs: help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any, NoReturn

from server import __version__
from server.endings import exit_code
from server.errors import EXIT_CONFIG
from server.settings_file import did_you_mean

COMMANDS = {
    "serve": "serve model folders over HTTP",
    "chat": "chat with a model in the terminal",
    "predict": "run texts through a model and write JSON lines",
    "models": "list the models of a server or a folder",
    "plan": "show what serve would load, and how much memory it needs",
    "check": "check whether this machine can serve the models",
    "config": "show every setting, its value and its source",
    "bench": "measure the speed of generation",
    "finetune": "train a model or an adapter that serve loads",
    "convert": "convert the pytorch_model.bin of a folder to safetensors",
}
"""Each is the module of that name in `server.commands`, with ``add_arguments`` and ``run``."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the page of usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CONFIG, f"{self.prog}: {message} (see --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse drops help that cannot be written, and ends as if it had been."""
        if file is sys.stdout and message:
            file.write(message)
        else:
            super()._print_message(message, file)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: _main(words))


def _main(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return _run(words[0], words[1:])
    parser = _parser()
    if words and not words[0].startswith("-"):
        parser.error(f"unknown command {words[0]}.{did_you_mean(words[0], COMMANDS)}")
    parser.parse_args(words)
    parser.print_help()
    return EXIT_CONFIG


def _parser() -> _Parser:
    parser = _Parser(
        prog="sluice",
        description="Serve and train fine-tuned language models.",
        epilog="Run sluice COMMAND --help for details.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sluice {__version__}")
    listed = parser.add_subparsers(metavar="COMMAND")
    for name, summary in COMMANDS.items():
        listed.add_parser(name, help=summary)
    return parser


def _run(name: str, words: list[str]) -> int:
    command = import_module(f"server.commands.{name}")
    parser = _Parser(
        prog=f"sluice {name}",
        description=(command.__doc__ or "").replace("``", "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    options = _parsed(parser, words)
    code: int = command.run(options)
    return code


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    try:
        # Folders may stand before, between and after flags.
        options, unknown = parser.parse_known_intermixed_args(words)
    except TypeError:
        # A parser with commands of its own cannot do that.
        options, unknown = parser.parse_known_args(words)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"{unknown[0]} is not a known flag.{did_you_mean(unknown[0].split('=')[0], known)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
