"""The files of the console page, and the text that is served while there is no build.

Invariants: only files of one folder are served, by names that cannot leave it. The content security policy lets the
page connect to this daemon only: its console, and its API on the other port.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Final

from aiohttp import web

FOLDER: Final = Path(__file__).resolve().parents[1] / "page"
# The largest file of a build has some hundred kilobytes.
MAX_FILE_BYTES: Final = 8 << 20
TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain",
}
# The build puts a hash of the content into each file name.
IMMUTABLE: Final = {"cache-control": "public, max-age=31536000, immutable"}
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'{api}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
_NO_BUILD: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mesh-llm</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5"></head>
<body><h1>mesh-llm is running, its console page {state}</h1>
<p>The API of this node is at {api}. {reason}</p>
<p>To build the page in a checkout, run <code>scripts/console</code>. This text is replaced when the page is built.</p>
<p>Without the page: <a href="/api/status">/api/status</a> returns the status of this node as JSON,
<code>/api/events</code> streams its changes (SSE), and <code>mesh-llm status</code> prints it.</p></body></html>
"""
_BUILDING: Final = {
    "state": "is not built yet",
    "reason": "The first start of a node with scripts/mesh-llm builds the page in the background, in about a minute.",
}
# The path is relative, because the page is shown to other machines as well.
_FAILED: Final = {
    "state": "could not be built",
    "reason": "The build log is <code>.venv/console.log</code> in the checkout. The next start of a node retries.",
}


class PageFiles:
    """The files in `folder`: `index.html` and `assets/`. They may appear and change while the daemon runs.

    A failed build leaves a file beside the folder whose name ends in ".failed" (scripts/console.sh).
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._failed = folder.with_name(f"{folder.name}.failed")

    def index(self, api: str) -> web.Response:
        """The page, which may connect to the API at `api` (scheme, host and port)."""
        found = _read(self._folder / "index.html")
        body = found if found is not None else self._no_build(api)
        # A policy cannot contain an IPv6 address (CSP3, 2.3.1); the chat of such a page shows an error.
        allowed = "" if "//[" in api else f" {api}"
        headers = {"content-security-policy": _POLICY.format(api=allowed), "x-frame-options": "DENY"}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    def _no_build(self, api: str) -> bytes:
        texts = _FAILED if self._failed.exists() else _BUILDING
        return _NO_BUILD.format(api=escape(api), **texts).encode()

    def asset(self, name: str) -> web.Response:
        """One file of `assets/`. Raises HTTPNotFound."""
        content_type = TYPES.get(Path(name).suffix)
        found = None
        if content_type is not None and _NAME.fullmatch(name):
            found = _read(self._folder / "assets" / name)
        if found is None:
            raise web.HTTPNotFound
        charset = "utf-8" if content_type is not None and content_type.startswith("text/") else None
        return web.Response(body=found, content_type=content_type or "", charset=charset, headers=IMMUTABLE)


def _read(path: Path) -> bytes | None:
    """The content of a file; None if it does not exist or is too large. Blocks for a moment."""
    try:
        with path.open("rb") as file:
            found = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    return found if len(found) <= MAX_FILE_BYTES else None
