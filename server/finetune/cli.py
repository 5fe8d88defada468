"""The `finetune` command: arguments in, exit code out. Light: torch is imported only when training starts."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from server.errors import ConfigurationError
from server.finetune import options
from server.tasks import TRAININGS

if TYPE_CHECKING:
    from argparse import ArgumentParser


def add_tasks(parser: ArgumentParser) -> None:
    """Add the arguments of `sluice finetune TASK ...`."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for training in TRAININGS.values():
        task_parser = tasks.add_parser(
            training.command, help=training.description, description=f"Train {training.description}."
        )
        for name, keywords in options.arguments(training.command):
            task_parser.add_argument(name, **keywords)


def run(args: Namespace) -> int:
    """Train as ``args`` say. A mistake in data or options is a `ConfigurationError` of one sentence."""
    if find_spec("accelerate") is None:
        raise ConfigurationError(
            "Fine-tuning needs the package accelerate. Install it: pip install 'sluice-server[finetune]'."
        )
    from server.finetune.train import finetune

    finetune(options.Options.from_arguments(args))
    return 0
