"""What pip installs to test one end of the supported versions of torch and transformers: `requirements.py oldest`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

RANGES = ("torch", "transformers")
"""Their ranges in pyproject.toml have two tested ends."""
TEST_TOOLS = ("httpx2", "hypothesis", "jsonschema", "pytest", "pytest-timeout")
"""Of the optional dependencies, what the tests of engines and models import."""

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def requirements(end: str) -> list[str]:
    """Those of pyproject.toml; at the oldest end the lowest release of each range, with all its patches."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines = [*project["dependencies"], *(line for line in optional if _name(line) in TEST_TOOLS)]
    return [_lowest(line) if end == "oldest" and _name(line) in RANGES else line for line in lines]


def _name(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement, maxsplit=1)[0]


def _lowest(requirement: str) -> str:
    """
    >>> _lowest("torch>=2.11,<2.14")
    'torch==2.11.*'
    """
    lowest = re.fullmatch(r"[\w-]+>=(\d+\.\d+),<.*", requirement)
    if lowest is None:
        raise ValueError(f"{requirement} has no lower bound of the form >=MAJOR.MINOR")
    return f"{_name(requirement)}=={lowest[1]}.*"


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")
