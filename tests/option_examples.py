"""What the examples of `server/OPTIONS.md` are to the tests."""

from __future__ import annotations

from server.serving.options.docs import EXAMPLES, GRAMMAR

__all__ = ["EXAMPLES", "GRAMMAR", "NEEDS_MORE"]

NEEDS_MORE = {"rank_by": "a served classifier"}
"""Examples that one model alone cannot answer."""
