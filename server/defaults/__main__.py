"""``python -m server.defaults``: puts the embedded default models into ``models/``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from server.defaults.install import install
from server.defaults.sources import SOURCES, TRANSLATORS
from server.errors import EXIT_MODEL, ConfigurationError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.defaults",
        description="Download and convert the default models. Does nothing if they exist.",
    )
    parser.add_argument("--into", type=Path, default=Path("models"), metavar="FOLDER", help="default: models")
    every = {source.name: source for source in (*SOURCES, *TRANSLATORS)}
    parser.add_argument("--only", choices=list(every), action="append", help="repeatable")
    parser.add_argument("--translators", action="store_true", help="the translators instead of the default models")
    options = parser.parse_args(arguments)
    try:
        wanted = TRANSLATORS if options.translators else SOURCES
        install([every[name] for name in options.only] if options.only else wanted, options.into)
    except ConfigurationError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        print(f"The default models cannot be written into {options.into}: {error}.", file=sys.stderr)  # noqa: T201
        return EXIT_MODEL
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
