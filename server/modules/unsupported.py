"""Why a module cannot run in some way."""

from __future__ import annotations


class Unsupported(Exception):
    """The module cannot run so; the message says why, as the end of a sentence."""


FORWARD_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What a module raises that is called in a way it was not made for."""
