"""Write a model folder again with its weights in safetensors, which ``sluice serve`` reads.

    sluice convert ./opus-mt-en-fr ./opus-mt-en-fr-safetensors

Reads pytorch_model.bin, whole or in shards, and adapter_model.bin: tensors alone, never code. Tokenizer, configs and
all else that serving reads are copied. OUT appears when it is complete.
"""

from __future__ import annotations

import contextlib
import shutil
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
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(f"{out} is in {folder}. Choose an OUT outside of it.")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end; whatever goes wrong, nothing is left."""
    from server.write_errors import write_problem

    place = out.resolve()
    unfinished = place.with_name(f".{place.name}.unfinished")
    try:
        # One that a killed run left is of no use.
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
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
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
