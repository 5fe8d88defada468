"""Train an adapter or a model that ``sluice serve`` takes.

    sluice finetune classify --model ./my-encoder --data reviews.csv --out my-classifier

sluice finetune TASK --help has the rest.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from server.finetune import cli


def add_arguments(parser: ArgumentParser) -> None:
    cli.add_tasks(parser)


def run(options: Namespace) -> int:
    return cli.run(options)
