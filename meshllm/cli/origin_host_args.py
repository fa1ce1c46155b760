"""Checks the values of `--allow-origin`, `--allow-host` and `--only-from`."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import typer

# A label of letters, digits and hyphens, or several with dots between (RFC 1123).
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.IGNORECASE)
MAX_NAME = 253
# 64 bits: keys whose ids begin alike can be made, but not so many digits.
MIN_ID_DIGITS = 16
_ID_START = re.compile(rf"[0-9a-f]{{{MIN_ID_DIGITS},64}}")


def origin(text: str) -> str:
    """The origin `scheme://host[:port]` of `text`. Raises BadParameter."""
    parts = urlsplit(text)
    if not parts.scheme or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise typer.BadParameter(f"{text!r} is not an origin. Give it as https://host or http://host:port.")
    return f"{parts.scheme}://{parts.netloc}"


def host(text: str) -> str:
    """A host name or IP address as browsers write it in `Host`. Raises BadParameter."""
    name = text.strip().rstrip(".")
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        if len(name) <= MAX_NAME and _NAME.fullmatch(name):
            return name.lower()
    raise typer.BadParameter(f"{text!r} is not a host name. Give a name such as workbench.local, without a port.")


def node_id_start(text: str) -> str:
    """A node id in hexadecimal, or its beginning: long enough that no other key can be made to match it."""
    digits = text.strip().lower()
    if _ID_START.fullmatch(digits):
        return digits
    raise typer.BadParameter(
        f"{text!r} is not a node id. Give at least {MIN_ID_DIGITS} hexadecimal digits of it: mesh-llm status --json "
        "shows the ids. Names are chosen by the nodes themselves."
    )
