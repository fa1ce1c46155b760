"""Who may call: a web page must not reach the API, nor anybody from outside without a key.

Law: on loopback a caller needs no key, but a browser is only believed when the page it shows comes from this machine
(`Origin`) and the name it used is this machine's (`Host`; DNS rebinding). Off loopback (`--listen-all`) a key is
required of everybody else, compared in constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller is not served."""

    status: int
    code: str
    message: str


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without port) can only mean this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def host_of(authority: str) -> str:
    """The host in `host[:port]` or `[v6]:port`; the empty string if it is neither."""
    if authority.startswith("["):
        inside, bracket, rest = authority[1:].partition("]")
        return inside if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else ""
    host, colon, port = authority.partition(":")
    return host if not colon or port.isdigit() else ""


@dataclass(frozen=True, slots=True)
class CallerPolicy:
    """Whom a server answers. `key` is required of callers that are not on this machine; None: nobody else may call."""

    key: str | None = None
    allowed_origins: frozenset[str] = frozenset()

    def refuse(self, peer: str, headers: Mapping[bytes, bytes]) -> Refusal | None:
        """Why this caller is refused, or None. `headers` have lower-case names; `peer` is its address, if any."""
        if headers.get(b"sec-fetch-site") == b"cross-site" and b"origin" not in headers:
            return Refusal(403, "origin_not_allowed", "Web pages from elsewhere may not call this API.")
        if (origin := headers.get(b"origin")) is not None and not self.allows_origin(origin.decode("latin-1")):
            message = "Web pages from elsewhere may not call this API; --allow-origin lets one in."
            return Refusal(403, "origin_not_allowed", message)
        local_name = is_loopback(host_of(headers.get(b"host", b"").decode("latin-1")))
        if local_name and (not peer or is_loopback(peer)):
            return None
        if not self.key:
            return Refusal(403, "host_not_allowed", "This API answers to localhost only; call it as http://localhost.")
        if not self._knows_key(headers):
            return Refusal(401, "invalid_api_key", "This API needs its key: send it as 'Authorization: Bearer KEY'.")
        return None

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of `origin` may call: one of this machine's, one named by the user, or no web page at all."""
        if origin in self.allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")
        except ValueError:
            return False

    def _knows_key(self, headers: Mapping[bytes, bytes]) -> bool:
        assert self.key
        sent = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            sent = token.strip()
        return hmac.compare_digest(sent, self.key.encode())
