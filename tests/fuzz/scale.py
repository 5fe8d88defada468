"""How much more the tests try that try things at random: `make fuzz` takes ten times as much as `make test`."""

from __future__ import annotations

import os

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
