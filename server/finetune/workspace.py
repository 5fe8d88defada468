"""Where a run works: a folder beside its result, which appears whole or not at all.

A run that was ended leaves its checkpoints there; the same command goes on from the last one that is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from server.errors import EXIT_IO, ConfigurationError
from server.finetune.options import Options
from server.finetune.say import say
from server.write_errors import write_problem

STATE = "trainer_state.json"
"""The last file of a checkpoint."""
BEFORE_RUN = {"lock", "run.json.new"}
"""Files of a folder whose run was ended before it wrote run.json."""
WITHOUT_EFFECT = ("out", "threads", "base_model_id", "dataset", "license")
"""Options that change nothing of what is trained."""


class Workspace:
    """Made when the run begins to write; gone when its result is in place."""

    def __init__(self, options: Options) -> None:
        """Raises `ConfigurationError` for a place that is taken."""
        self.out = Path(options.out)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ConfigurationError(f"{self.out} already exists. Choose another --out, or remove it.")
        if self.out.is_mount():
            raise ConfigurationError(f"{self.out} is a mount point. Give --out a new folder in it.")
        # A link is kept, and the result is written to where it points.
        place = self.out.resolve()
        self._place = place
        self.folder = place.with_name(f".{place.name}.unfinished")
        self.checkpoints = self.folder / "checkpoints"
        self.result = self.folder / "result"
        self._run = self.folder / "run.json"
        self._options = {name: value for name, value in asdict(options).items() if name not in WITHOUT_EFFECT}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The result is moved to its place at the end. Raises `ConfigurationError` where it cannot be written."""
        try:
            lock = self._begin()
        except OSError as error:
            self._clean()
            raise self._refusal(error) from error
        try:
            yield
            with contextlib.suppress(FileNotFoundError):
                self._place.rmdir()
            self.result.rename(self._place)
        except KeyboardInterrupt:
            say(f"\nInterrupted. {self._advice()}")
            self._clean()
            raise
        except ConfigurationError:
            # It would end in the same way from any checkpoint.
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except Exception as error:
            self._clean()
            if write_problem(error) is None:
                raise
            raise self._refusal(error) from error
        finally:
            lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refusal(self, error: Exception) -> ConfigurationError:
        problem = write_problem(error) or getattr(error, "strerror", None) or str(error)
        return ConfigurationError(f"{self.out} cannot be written: {problem}. {self._advice()}", exit_code=EXIT_IO)

    def last_checkpoint(self) -> str | None:
        """The newest that was written to its end; what comes after it is removed."""
        complete = None
        for folder in self._checkpoint_folders():
            if _is_complete(folder):
                complete = folder
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if complete is None:
            return None
        say(f"continuing from step {_step(complete)} of the interrupted run")
        return str(complete)

    def _begin(self) -> IO[bytes]:
        """A lock, which is held until it is closed."""
        self._check_origin()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._prepare()
        except BlockingIOError:
            lock.close()
            raise ConfigurationError(f"Another run is writing to {self.out}. Choose another --out, or wait.") from None
        except BaseException:
            lock.close()
            raise
        return lock

    def _check_origin(self) -> None:
        """Raise for a folder that no run made: it would be removed at the end."""
        if not self.folder.is_dir() or {path.name for path in self.folder.iterdir()} <= BEFORE_RUN:
            return
        try:
            is_run = "options" in json.loads(self._run.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            is_run = False
        if not is_run:
            raise ConfigurationError(
                f"{self.folder} is where this run would work, and another program made it. "
                "Choose another --out, or move the folder."
            )

    def _prepare(self) -> None:
        run = {"options": self._options, "data": self._digests()}
        if self._run.is_file() and json.loads(self._run.read_text(encoding="utf-8")) != run:
            raise ConfigurationError(
                f"{self.folder} belongs to an interrupted run for {self.out} with other options or data. "
                "Choose another --out, or remove it."
            )
        shutil.rmtree(self.result, ignore_errors=True)
        # Renamed into its place: an unfinished one would be taken for that of another run.
        written = self._run.with_suffix(".json.new")
        written.write_text(json.dumps(run), encoding="utf-8")
        written.rename(self._run)

    def _digests(self) -> list[str]:
        names = [self._options["data"], self._options["eval_data"]]
        return [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names if name]

    def _checkpoint_folders(self) -> list[Path]:
        return sorted(self.checkpoints.glob("checkpoint-*"), key=_step)

    def _advice(self) -> str:
        if any(map(_is_complete, self._checkpoint_folders())):
            return "Run the same command again to continue from the last checkpoint."
        return "No files were left behind."

    def _clean(self) -> None:
        """Leave complete checkpoints alone, or nothing."""
        shutil.rmtree(self.result, ignore_errors=True)
        kept = False
        for folder in self._checkpoint_folders():
            if _is_complete(folder):
                kept = True
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if not kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
