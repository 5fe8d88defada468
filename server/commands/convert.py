"""Copy a model folder and convert its weights to safetensors, which ``sluice serve`` reads.

    sluice convert ./opus-mt-en-fr ./opus-mt-en-fr-safetensors

Reads pytorch_model.bin, whole or in shards, and adapter_model.bin: tensors alone, never code. Tokenizer, configs and
all else that serving reads are copied. OUT appears when it is complete.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from server.errors import EXIT_IO, ConfigurationError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="A model folder with pytorch_model.bin.")
    parser.add_argument("out", metavar="OUT", type=Path, help="The folder to write. It must not exist yet.")


def run(options: Namespace) -> int:
    folder, out = options.folder, options.out
    from server.models.convert import check_source, convert

    check_source(folder)
    _check_place(folder, out)
    with _appearing(out) as unfinished:
        converted = convert(folder, unfinished)
    print(f"wrote {out}: {converted.num_tensors} tensors, {converted.num_bytes / 1e6:.1f} MB")
    print(f"serve it with: sluice serve {out}")
    return 0


def _check_place(folder: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} already exists. Choose another OUT, or remove it.")
    if out.is_mount():
        raise ConfigurationError(f"{out} is a mount point. Choose a new OUT in it.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(f"{out} is in {folder}. Choose an OUT outside of it.")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``out`` at the end. Whatever goes wrong, nothing is left."""
    from server.write_errors import write_problem

    place = out.resolve()
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(_ended_by_sigterm())
        try:
            if not place.parent.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
            # Beside it, for the same file system, and under a name that no folder of the user has.
            scratch = cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix=".sluice-convert-", dir=place.parent, ignore_cleanup_errors=True)
            )
            # The scratch folder is for its owner alone; this one has the usual mode.
            unfinished = Path(scratch) / "model"
            unfinished.mkdir()
            yield unfinished
            with contextlib.suppress(FileNotFoundError):
                place.rmdir()
            unfinished.rename(place)
        except Exception as error:
            problem = None if isinstance(error, ConfigurationError) else write_problem(error)
            if problem is None:
                raise
            message = f"{out} cannot be written: {problem}. No files were left behind."
            raise ConfigurationError(message, exit_code=EXIT_IO) from error


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Clean up after SIGTERM too. Python ends at once by default."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
