"""A folder that is followed: every file that an adapter is read from counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.serving.adapter_watch import AdapterWatch


class Loads:
    """In place of the loader."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.unloaded: list[str] = []

    async def load_folder(self, name: str, folder: Path, root: Path) -> None:
        self.names.append(name)

    async def unload(self, name: str) -> None:
        self.unloaded.append(name)


def write(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).write_text("{}")
    return folder


@pytest.mark.parametrize("file", ["generation_config.json", "chat_template.jinja", "tokenizer.json"])
def test_an_adapter_is_loaded_again_where_any_of_its_files_changes(tmp_path: Path, file: str) -> None:
    async def main() -> None:
        loads = Loads()
        watch = AdapterWatch(loads, tmp_path)  # type: ignore[arg-type]
        folder = write(tmp_path, "first")
        await watch.look(waits=False)
        await watch.look(waits=False)
        assert loads.names == ["first"]
        (folder / file).write_text("{}")
        (folder / "notes.md").write_text("not read")
        await watch.look(waits=False)
        await watch.look(waits=False)
        assert loads.names == ["first", "first"]

    asyncio.run(main())


def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loads = Loads()
        for name in ("closed", "open"):
            write(tmp_path, name)
        is_file = Path.is_file

        def denied(path: Path, *args: Any) -> bool:
            if path.parent.name == "closed":
                raise PermissionError(13, "Permission denied", str(path))
            return is_file(path, *args)

        watch = AdapterWatch(loads, tmp_path)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_file", denied)
            await watch.look(waits=False)
        assert loads.names == ["open"]
        await watch.look(waits=False)
        assert loads.names == ["open", "closed"]
        monkeypatch.setattr(Path, "is_file", denied)
        await watch.look(waits=False)
        assert not loads.unloaded

    asyncio.run(main())
