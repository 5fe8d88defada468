"""Copies of adapters: their digest is that of the content, and nothing outside of the folder gets in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from server.client import adapter_copies
from server.client.adapter_copies import CONFIG, PREFIX, WEIGHTS, AdapterCopies, NotCopied

LIMIT = 1000


def folder(root: Path, name: str = "formal", weights: bytes = b"weights", **config: object) -> Path:
    place = root / name
    place.mkdir(exist_ok=True)
    (place / CONFIG).write_text(json.dumps(config))
    (place / WEIGHTS).write_bytes(weights)
    return place


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterCopies:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return AdapterCopies()


def test_the_digest_is_that_of_the_content(copies: AdapterCopies, tmp_path: Path) -> None:
    first = copies.add(folder(tmp_path), max_bytes=LIMIT)
    renamed = copies.add(folder(tmp_path, "other name"), max_bytes=LIMIT)
    assert renamed == first and first.folder.name == "formal"
    digests = [copies.add(folder(tmp_path, weights=b"other"), max_bytes=LIMIT).digest]
    digests.append(copies.add(folder(tmp_path, r=8), max_bytes=LIMIT).digest)
    (folder(tmp_path) / "generation_config.json").write_text("{}")
    digests.append(copies.add(tmp_path / "formal", max_bytes=LIMIT).digest)
    assert len({first.digest, *digests}) == 4


def test_a_copy_stays_until_everyone_has_released_it(copies: AdapterCopies, tmp_path: Path) -> None:
    place = folder(tmp_path)
    copy = copies.add(place, max_bytes=LIMIT)
    copies.add(place, max_bytes=LIMIT)
    (place / WEIGHTS).write_bytes(b"other")
    copies.release(copy.digest)
    assert (copy.folder / WEIGHTS).read_bytes() == b"weights"
    copies.release(copy.digest)
    assert not copy.folder.exists()
    assert copies.add(folder(tmp_path), max_bytes=LIMIT) == copy
    copies.close()
    assert not list((tmp_path / "temporary").iterdir())


def test_what_training_leaves_beside_an_adapter_is_not_copied(copies: AdapterCopies, tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "optimizer.pt").write_bytes(bytes(10))
    (place / "checkpoint-1").mkdir()
    copy = copies.add(place, max_bytes=LIMIT)
    assert sorted(path.name for path in copy.folder.iterdir()) == [CONFIG, WEIGHTS]


def test_rejects_links_out_of_the_folder_of_adapters(copies: AdapterCopies, tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    root.mkdir()
    place = folder(root)
    (tmp_path / "secret.json").write_text("{}")
    (place / "secret.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(NotCopied, match=r"secret\.json is a link that leads out"):
        copies.add(place, max_bytes=LIMIT, within=root)
    # The operator's own settings may name what they like.
    assert (copies.add(place, max_bytes=LIMIT).folder / "secret.json").read_text() == "{}"


def test_rejects_a_file_that_changes_while_it_is_read(
    copies: AdapterCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path, weights=bytes(100))
    times = iter(range(10**9, 10**10, 10**8))
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        # Each look finds another time of change, as when somebody goes on writing.
        os.utime(place / WEIGHTS, (next(times), next(times)))
        return real(fd)

    monkeypatch.setattr(adapter_copies.os, "fstat", fstat)
    with pytest.raises(NotCopied, match=f"{WEIGHTS} changed while it was read"):
        copies.add(place, max_bytes=LIMIT)


def test_rejects_weights_beyond_the_limit_before_they_are_read(copies: AdapterCopies, tmp_path: Path) -> None:
    with pytest.raises(NotCopied, match="has 1001 bytes, which is more than the limit of 1000"):
        copies.add(folder(tmp_path, weights=bytes(LIMIT + 1)), max_bytes=LIMIT)


def test_the_copies_of_a_killed_server_are_removed_by_the_next_one(copies: AdapterCopies, tmp_path: Path) -> None:
    script = (
        "import os, sys, tempfile; from pathlib import Path; from server.client.adapter_copies import AdapterCopies;"
        "tempfile.tempdir = sys.argv[2]; AdapterCopies().add(Path(sys.argv[1]), max_bytes=1000); os._exit(9)"
    )
    temporary = tmp_path / "temporary"
    subprocess.run([sys.executable, "-c", script, str(folder(tmp_path)), str(temporary)], check=False)
    (abandoned,) = temporary.glob(PREFIX + "*")
    copies.add(folder(tmp_path), max_bytes=LIMIT)
    (own,) = temporary.glob(PREFIX + "*")
    assert own != abandoned
    # One that lives keeps its own.
    AdapterCopies().add(folder(tmp_path), max_bytes=LIMIT)
    assert own.exists()
