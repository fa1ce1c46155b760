"""The console's page: the files that its build made, and what is said where there is no build.

Law: only files of that one folder are read, by names that cannot leave it; nothing the page holds comes from elsewhere,
and the policy sent with it lets it ask nobody but this daemon: its console, and its API on the other port.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Final

from aiohttp import web

FOLDER: Final = Path(__file__).resolve().parents[1] / "page"
# The largest file of a build is some hundred kilobytes.
MAX_FILE_BYTES: Final = 8 << 20
TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain",
}
# A build names its files by what is in them.
FOR_GOOD: Final = {"cache-control": "public, max-age=31536000, immutable"}
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'{api}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
_WITHOUT: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mesh-llm</title>
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5"></head>
<body><h1>mesh-llm runs, its console page {state}</h1>
<p>This node answers at {api}. {why}</p>
<p>To build it by hand, in a checkout: <code>scripts/console</code>. This text makes room for the page by itself.</p>
<p>Without it: <a href="/api/status">/api/status</a> is the state of this node as JSON, <code>/api/events</code> the
same whenever it changes (SSE), and <code>mesh-llm status</code> prints it.</p></body></html>
"""
_COMING: Final = {
    "state": "is not built yet",
    "why": "The page is built in the background when scripts/mesh-llm starts a node for the first time, which takes "
    "about a minute.",
}
# Where that log lies is said as it is in every checkout: the page is shown to other machines as well.
_FAILED: Final = {
    "state": "could not be built",
    "why": "What went wrong is in <code>.venv/console.log</code>, in the checkout that it was started from. The next "
    "start of scripts/mesh-llm tries again.",
}


class PageFiles:
    """The files in `folder`: `index.html`, and `assets` with names of their own. A build may come, go and change; one
    that failed leaves a file beside the folder, which ends in ".failed" (scripts/console.sh)."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._failed = folder.with_name(f"{folder.name}.failed")

    def index(self, api: str) -> web.Response:
        """The page, which may ask the API at `api` (scheme, host and port)."""
        found = _read(self._folder / "index.html")
        body = found if found is not None else self._without(api)
        # A policy cannot name an address of IPv6 (CSP3, 2.3.1): a page that came by one says that it cannot chat.
        named = "" if "//[" in api else f" {api}"
        headers = {"content-security-policy": _POLICY.format(api=named), "x-frame-options": "DENY"}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    def _without(self, api: str) -> bytes:
        """What is said where there is no page."""
        return _WITHOUT.format(api=escape(api), **(_FAILED if self._failed.exists() else _COMING)).encode()

    def asset(self, name: str) -> web.Response:
        """One of its files. Raises HTTPNotFound."""
        kind = TYPES.get(Path(name).suffix)
        found = None
        if kind is not None and _NAME.fullmatch(name):
            found = _read(self._folder / "assets" / name)
        if found is None:
            raise web.HTTPNotFound
        charset = "utf-8" if kind is not None and kind.startswith("text/") else None
        return web.Response(body=found, content_type=kind or "", charset=charset, headers=FOR_GOOD)


def _read(path: Path) -> bytes | None:
    """The file, or None where there is none. Short, and in the system's cache after the first time."""
    try:
        with path.open("rb") as file:
            found = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        return None
    return found if len(found) <= MAX_FILE_BYTES else None
