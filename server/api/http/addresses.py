"""One spelling for each address, so that access, limits, logs and routes all see the same path and method."""

from __future__ import annotations

from starlette.types import Scope

VERSION = "/v1"
UNVERSIONED = ("/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/models")
"""Paths, and all below them, that some clients send without ``/v1``. Other unversioned paths are routes themselves."""


def canonical_path(path: str) -> str:
    """The path without a trailing slash, and with the version where a client leaves it out.

    >>> canonical_path("/info/"), canonical_path("/chat/completions"), canonical_path("/")
    ('/info', '/v1/chat/completions', '/')
    """
    if len(path) > 1 and path.endswith("/") and not path.endswith("//"):
        path = path[:-1]
    if any(path == known or path.startswith(f"{known}/") for known in UNVERSIONED):
        return VERSION + path
    return path


def canonical(scope: Scope) -> Scope:
    """The scope that every layer below works with. HEAD is answered as GET: the HTTP protocol drops the body."""
    return {
        **scope,
        "path": canonical_path(scope["path"]),
        "method": "GET" if scope["method"] == "HEAD" else scope["method"],
    }
