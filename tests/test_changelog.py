"""CHANGELOG.md and the version."""

from __future__ import annotations

import re
from pathlib import Path

from server import __version__

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()


def test_the_newest_release_in_the_changelog_is_the_version_and_has_a_date() -> None:
    releases = re.findall(r"^## (\d\S*)(?: - (\S+))?$", CHANGELOG, re.MULTILINE)
    version, date = releases[0]
    assert version == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
