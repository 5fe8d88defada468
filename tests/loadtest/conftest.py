"""The load tests are scripts that import one another by their names alone."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "loadtest"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))
