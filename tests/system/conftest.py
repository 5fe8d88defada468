"""One server over tiny models of many families, decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY_SETTINGS
from tests.server_process import ServerProcess, running_server
from tests.system.families import DECODERS


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, by name."""
    from tests.tiny_encoder_decoders import KINDS, write_tiny_encoder_decoder
    from tests.tiny_models import write_tiny_decoder

    root = tmp_path_factory.mktemp("families")
    decoders = {family: write_tiny_decoder(root / family, family) for family in DECODERS}
    return decoders | {family: write_tiny_encoder_decoder(root / family, family) for family in KINDS}


@pytest.fixture(scope="session")
def family_server(family_folders: dict[str, Path]) -> Iterator[ServerProcess]:
    """A server whose models have the names of their families, shared: leave it as it was."""
    flags = [flag for family, folder in family_folders.items() for flag in ("--model", f"{family}={folder}")]
    with running_server(*flags, *TINY_SETTINGS) as server:
        yield server
