"""The `finetune` command: arguments in, exit code out. Light: torch is imported only when training starts."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from server.errors import ConfigurationError
from server.finetune import options

if TYPE_CHECKING:
    from argparse import ArgumentParser

TASKS = {
    "classify": "a text classifier, from JSONL or CSV with text and label, and text_pair for pairs of texts "
    "(JSONL: a list of labels for multi-label)",
    "ner": "an entity tagger, from CoNLL columns or JSONL with tokens and ner_tags, in any usual scheme of tags",
}


def add_tasks(parser: ArgumentParser) -> None:
    """Add the arguments of `sluice finetune TASK ...`."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for task, description in TASKS.items():
        task_parser = tasks.add_parser(task, help=description, description=f"Train {description}.")
        for name, keywords in options.arguments():
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
