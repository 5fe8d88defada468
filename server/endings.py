"""How a command ends, whatever ends it: an exit code, and one sentence for what its user can mend."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from server.errors import EXIT_INTERNAL, EXIT_IO, ConfigurationError

# As shells have it for SIGINT and SIGPIPE.
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141


def exit_code(run: Callable[[], int]) -> int:
    """Of ``run``, with its output written to the end. Only a bug has a traceback, and that goes into a file."""
    try:
        code = _written(run)
    except ConfigurationError as error:
        code = _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The program that read the output has ended, as `head` does.
        code = EXIT_NO_READER
    except OSError as error:
        code = _say(_file_problem(error), EXIT_IO)
    except MemoryError:
        code = _say("Not enough memory. Free some, or use a smaller model.", EXIT_IO)
    except Exception as error:
        code = _say(_bug(error), EXIT_INTERNAL)
    _drop_unwritten()
    return code


def _written(run: Callable[[], int]) -> int:
    """Also where argparse ends it, after help and after mistakes."""
    try:
        return run()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def _say(message: str, code: int) -> int:
    # Where the error stream is closed, the exit code alone tells.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"sluice: {message}\n")
        sys.stderr.flush()
    return code


def _file_problem(error: OSError) -> str:
    """
    >>> _file_problem(IsADirectoryError(21, "Is a directory", "data.csv"))
    'data.csv cannot be used: is a directory.'
    """
    problem = (error.strerror or type(error).__name__).lower()
    if error.filename is None:
        return f"The input or output cannot be used: {problem}."
    return f"{os.fsdecode(error.filename)} cannot be used: {problem}."


def _bug(error: Exception) -> str:
    """The sentence for a mistake of our own; its traceback is in a file that the sentence names."""
    trace = "".join(traceback.format_exception(error))
    line = f"Internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}."
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sluice-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(trace)
    except OSError:
        return f"{line}\n{trace}"
    return f"{line} The details are in {file.name}."


def _drop_unwritten() -> None:
    """What a stream could not write is not tried again at exit, where Python would say so in lines of its own."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
