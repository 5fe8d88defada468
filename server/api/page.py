"""``GET /``: the page for people, and the files that it is made of. It knows nothing of models: it uses the API."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from server.serving.options import form

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # The browser itself refuses to read any string as HTML or as a script.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GENERATION_SETTINGS = "generation_settings.js"
COMMENT_LINES = re.compile(rb"^[ ]*(?://.*|/\*\*.*(?:\n[ ]+\*.*)*)\n", re.MULTILINE)
FOR_EVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
"""The browser may keep it, and asks each time whether it is still the same."""


@dataclass(frozen=True)
class PageFile:
    """One file, ready to be sent."""

    content: bytes
    media_type: str
    etag: str


def _read() -> dict[str, bytes]:
    entries = [entry for entry in files("server.page").iterdir() if _suffix(entry.name) in MEDIA_TYPES]
    found = {entry.name: _without_comments(entry.name, entry.read_bytes()) for entry in entries}
    return dict(sorted({**found, GENERATION_SETTINGS: _generation_settings()}.items()))


def _without_comments(name: str, content: bytes) -> bytes:
    """A script without the lines that are nothing but comments, which only readers of the source need."""
    return COMMENT_LINES.sub(b"", content) if name.endswith(".js") else content


def _generation_settings() -> bytes:
    """A script with the table of options, as far as the page offers them."""
    groups = json.dumps(form.groups(), separators=(",", ":"))
    return f"export const GENERATE = {groups};\n".encode()


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _digest(*contents: bytes) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()[:16]


def _page_file(name: str, content: bytes) -> PageFile:
    return PageFile(content, MEDIA_TYPES[_suffix(name)] + "; charset=utf-8", f'"{_digest(content)}"')


_CONTENTS = _read()
VERSION = _digest(*_CONTENTS.values())
"""Of all files together; they are found under an address that holds it, so that two versions never mix."""
FILES = {
    name: _page_file(name, content.replace(b"page/VERSION/", f"page/{VERSION}/".encode()))
    for name, content in _CONTENTS.items()
}
START = "index.html"
PATHS = ("/", *(f"/page/{VERSION}/{name}" for name in FILES if name != START))
"""What a browser that opens the page asks for."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def start(request: Request) -> Response:
    """The page itself."""
    return _answer(request, FILES[START], ASK_AGAIN)


@router.get("/page/{version}/{name}")
async def page_file(version: str, name: str, request: Request) -> Response:
    """One of its files. Another version's page, from before an update or behind another replica, gets today's."""
    file = FILES.get(name) if name != START else None
    if file is None:
        raise HTTPException(404)
    return _answer(request, file, FOR_EVER if version == VERSION else ASK_AGAIN)


def _answer(request: Request, file: PageFile, caching: str) -> Response:
    headers = {**HEADERS, "Cache-Control": caching, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})
