"""Who may call: a web page must not reach the API, nor anybody from outside without a key.

Law: on loopback a caller needs no key, but a browser is only believed when the page it shows comes from this machine
(`Origin`) and the name it used is this machine's (`Host`; DNS rebinding). Off loopback (`--listen-all`) a key is
required of everybody else, compared in constant time. Of the pages that other machines show, our console's alone may
call, and only by a name that nobody else can give to this machine: the very address at which the caller reached it, or
one that its owner named (`--allow-host`).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class AccessDenied:
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
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is, whichever way it is written, or None where it is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # Without its scope, which means something on this machine only.
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


def host_of(authority: str) -> str:
    """The host in `host[:port]` or `[v6]:port`; the empty string if it is neither."""
    if authority.startswith("["):
        inside, bracket, rest = authority[1:].partition("]")
        return inside if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else ""
    host, colon, port = authority.partition(":")
    return host if not colon or port.isdigit() else ""


def host_in(headers: Mapping[bytes, bytes]) -> str:
    """The name or address by which a caller means to reach this machine."""
    return host_of(headers.get(b"host", b"").decode("latin-1"))


def is_near(peer: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a caller is on this machine, by its address `peer` ("": no network lies between) and by the name used."""
    return is_loopback(host_in(headers)) and (not peer or is_loopback(peer))


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Whom a server answers. `key` is required of callers that are not on this machine; None: nobody else may call.

    `allowed_hosts` are names (lower case, no port) by which others may call it; `page_port` is that of the console, 0
    while it is not known. In all methods `headers` have lower-case names, `peer` is the caller's address, if any, and
    `at` the address of this machine that the caller has reached.
    """

    key: str | None = None
    allowed_origins: frozenset[str] = frozenset()
    allowed_hosts: frozenset[str] = frozenset()
    page_port: int = 0

    def refuse(self, peer: str, headers: Mapping[bytes, bytes], at: str = "") -> AccessDenied | None:
        """Why this caller is refused, or None."""
        refusal = self.refuse_page(headers, at)
        if refusal is None and not is_near(peer, headers):
            refusal = self.refuse_without_key(headers)
        return refusal

    def refuse_page(self, headers: Mapping[bytes, bytes], at: str = "") -> AccessDenied | None:
        """Why the web page that calls, if it is one, is refused."""
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site") != b"cross-site":
                return None
            return AccessDenied(403, "origin_not_allowed", "Web pages from elsewhere may not call this API.")
        text = origin.decode("latin-1")
        if self.allows_origin(text) or self._is_console(text, host_in(headers), at):
            return None
        return AccessDenied(
            403, "origin_not_allowed", "Web pages from elsewhere may not call this API; --allow-origin lets one in."
        )

    def refuse_without_key(self, headers: Mapping[bytes, bytes]) -> AccessDenied | None:
        """Why a caller from elsewhere is refused: nobody may call from there, or it does not know the key."""
        if not self.key:
            return AccessDenied(
                403, "host_not_allowed", "This API answers to localhost only; call it as http://localhost."
            )
        if not self._knows_key(headers):
            return AccessDenied(
                401, "invalid_api_key", "This API needs its key: send it as 'Authorization: Bearer KEY'."
            )
        return None

    def refuse_name(self, headers: Mapping[bytes, bytes], at: str) -> AccessDenied | None:
        """Why a browser on another machine is not even shown a page: it came by a name that may be anybody's."""
        if not self.key:
            return AccessDenied(
                403,
                "host_not_allowed",
                "This console answers to this machine only: open it as http://localhost. "
                "--listen-all opens it to others, read-only and with a key.",
            )
        host = host_in(headers)
        if self.knows_name(host, at):
            return None
        shown = host[:100] if host.isprintable() else ""
        message = f"This console does not know itself as {shown!r}: open it by its address, or --allow-host that name."
        return AccessDenied(403, "host_not_allowed", message)

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of `origin` may call: one of this machine's, one named by the user, or no web page at all."""
        if origin in self.allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")
        except ValueError:
            return False

    def knows_name(self, host: str, at: str) -> bool:
        """Whether `host` can only mean this machine. Any other name may have been made to lead here (DNS rebinding)."""
        name = host.rstrip(".").lower()
        if is_loopback(name) or name in self.allowed_hosts:
            return True
        address = _address(name)
        return address is not None and address == _address(at)

    def _is_console(self, origin: str, host: str, at: str) -> bool:
        """Whether `origin` is our console, as a browser sees it that calls us `host`."""
        try:
            parts = urlsplit(origin)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            return False
        # The host as the browser itself writes it, in both: whatever differs is another one's page.
        same = parts.hostname == host.lower() and port == self.page_port
        return same and parts.scheme in ("http", "https") and self.knows_name(host, at)

    def _knows_key(self, headers: Mapping[bytes, bytes]) -> bool:
        assert self.key
        sent = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            sent = token.strip()
        return hmac.compare_digest(sent, self.key.encode())
