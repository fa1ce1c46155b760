"""Access control of the API and the console: who may call, and which callers need the API key.

Deny by default. A caller is local if its address, the `Host` it used and the absence of proxy headers all say so; any
other caller needs the key, compared in constant time. A web page may call only if its `Origin` is on this machine, is
allowed with `--allow-origin`, or is this node's console at a host name that no attacker can point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from urllib.parse import urlsplit

from meshllm.web.http.key_guard import KeyGuard

# A reverse proxy on this machine connects from loopback for clients anywhere. Any of these headers makes a caller
# remote: those of RFC 7230 and 7239, and the customary ones of nginx, HAProxy, Envoy, Traefik and the large CDNs.
PROXY_HEADERS = frozenset(
    (
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-real-ip",
    )
)


@dataclass(frozen=True, slots=True)
class AccessDenied:
    """Why a caller is refused: the HTTP status, a code for programs, and a message."""

    status: int
    code: str
    message: str


class CallerKind(Enum):
    """Classes of callers, which have shares of connections and memory of their own."""

    LOCAL = "local"
    KEYED = "remote with key"
    KEYLESS = "remote without key"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a request's headers say of its caller, and why it is refused, if it is."""

    kind: CallerKind = CallerKind.KEYLESS
    refusal: AccessDenied | None = None


PEER_VERDICT = Verdict(CallerKind.PEER)
_LOCAL_VERDICT = Verdict(CallerKind.LOCAL)
_KEYED_VERDICT = Verdict(CallerKind.KEYED)


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without port) can only mean this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """`host` as an address, IPv4-mapped IPv6 as IPv4, without scope; None if it is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # The scope has a meaning on this machine only.
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))


@lru_cache(maxsize=1024)
def network_of(host: str) -> str:
    """The unit of shares: an IPv4 address, or the /64 of an IPv6 address, because one host has all of it."""
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return host if address is None else str(address)


@lru_cache(maxsize=256)
def host_of(authority: str) -> str:
    """The host in `host[:port]` or `[v6]:port`; the empty string if `authority` is neither."""
    if authority.startswith("["):
        inside, bracket, rest = authority[1:].partition("]")
        return inside if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else ""
    host, colon, port = authority.partition(":")
    return host if not colon or port.isdigit() else ""


def host_in(headers: Mapping[bytes, bytes]) -> str:
    """The host name or address in the `Host` header, without port."""
    return host_of(headers.get(b"host", b"").decode("latin-1"))


def via_proxy(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a header says that a proxy has passed the request on."""
    return not PROXY_HEADERS.isdisjoint(headers)


def is_local(peer: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the caller is a program on this machine.

    `peer` is its address; an unknown one ("": the connection was reset before it was accepted) is not local. Neither is
    a request for another `Host` (DNS rebinding), nor one that came through a proxy.
    """
    return is_loopback(peer) and is_loopback(host_in(headers)) and not via_proxy(headers)


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The rules of one server.

    `key` is required of remote callers, with `require_key` of local ones too; None: they are refused.
    `allowed_origins` are web pages that may call; `allowed_hosts` are further host names of this machine (lower case,
    no port); `page_port` is the console's port, 0 if unknown. In all methods `headers` have lower-case names, `peer` is
    the caller's address ("" if unknown) and `at` the address of this machine that the caller connected to. `guard`
    limits guesses of the key.
    """

    key: str | None = None
    allowed_origins: frozenset[str] = frozenset()
    allowed_hosts: frozenset[str] = frozenset()
    page_port: int = 0
    require_key: bool = False
    guard: KeyGuard | None = field(default=None, compare=False)

    def judge(self, peer: str, headers: Mapping[bytes, bytes], at: str = "") -> Verdict:
        """The class of an API caller, and why it is refused, if it is."""
        refusal = self.refuse_page(headers, at) if b"origin" in headers or b"sec-fetch-site" in headers else None
        local = is_local(peer, headers)
        if not local or self.require_key:
            refusal = refusal or self.refuse_without_key(headers, peer)
        if local:
            return _LOCAL_VERDICT if refusal is None else Verdict(CallerKind.LOCAL, refusal)
        return _KEYED_VERDICT if refusal is None else Verdict(CallerKind.KEYLESS, refusal)

    def refuse_page(self, headers: Mapping[bytes, bytes], at: str = "") -> AccessDenied | None:
        """Why the calling web page is refused; None if it may call, or if the caller is not a web page."""
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site") != b"cross-site":
                return None
            return AccessDenied(403, "origin_not_allowed", "Cross-site requests of web pages are not allowed.")
        text = origin.decode("latin-1")
        if self.allows_origin(text) or self._is_console(text, host_in(headers), at):
            return None
        return AccessDenied(
            403,
            "origin_not_allowed",
            "This web page's origin may not call this API. Start mesh-llm with --allow-origin ORIGIN to allow it.",
        )

    def refuse_without_key(self, headers: Mapping[bytes, bytes], peer: str = "") -> AccessDenied | None:
        """Why a remote caller is refused: there is no key, or it was not sent; None if the key is right. Call it once
        for each request: a wrong key counts as a guess."""
        if not self.key:
            if via_proxy(headers):
                message = (
                    "This request came through a proxy, so it counts as remote, and this API accepts local callers "
                    "only. Start mesh-llm with --listen-all and send its API key, or call http://localhost directly."
                )
            else:
                message = (
                    "This API accepts local callers only. Call it as http://localhost, or start with --listen-all."
                )
            return AccessDenied(403, "host_not_allowed", message)
        sent = _sent_key(headers)
        right = hmac.compare_digest(sent, self.key.encode())
        if sent and self.guard is not None and not self.guard.allows(peer, right):
            return AccessDenied(
                429, "too_many_wrong_keys", "Too many wrong API keys from this address. Retry in a minute."
            )
        if not right:
            return AccessDenied(
                401, "invalid_api_key", "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'."
            )
        return None

    def refuse_host(self, headers: Mapping[bytes, bytes], at: str) -> AccessDenied | None:
        """Why a remote browser does not get the console's page: its host name may belong to an attacker."""
        if not self.key:
            return AccessDenied(
                403,
                "host_not_allowed",
                "This console accepts local callers only. Open it as http://localhost, "
                "or start with --listen-all to open it read-only to other machines, with a key.",
            )
        host = host_in(headers)
        if self.knows_host(host, at):
            return None
        shown = host[:100] if host.isprintable() else ""
        message = (
            f"Host name {shown!r} is not allowed. Use the IP address or start with --allow-host {shown or 'NAME'}."
        )
        return AccessDenied(403, "host_not_allowed", message)

    def allows_origin(self, origin: str) -> bool:
        """Whether `origin` is on this machine or in `allowed_origins`."""
        if origin in self.allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
            return parts.scheme in ("http", "https") and is_loopback(parts.hostname or "")
        except ValueError:
            return False

    def knows_host(self, host: str, at: str) -> bool:
        """Whether `host` can only mean this machine: loopback, an allowed name, or the very address `at`."""
        name = host.rstrip(".").lower()
        if is_loopback(name) or name in self.allowed_hosts:
            return True
        address = _address(name)
        return address is not None and address == _address(at)

    def _is_console(self, origin: str, host: str, at: str) -> bool:
        """Whether `origin` is this node's console, as seen by a browser that calls this machine `host`."""
        try:
            parts = urlsplit(origin)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            return False
        # The browser writes the host the same way in both headers.
        same = parts.hostname == host.lower() and port == self.page_port
        return same and parts.scheme in ("http", "https") and self.knows_host(host, at)


def _sent_key(headers: Mapping[bytes, bytes]) -> bytes:
    """The key in `Authorization: Bearer` or `X-API-Key`; empty if there is none."""
    sent = headers.get(b"x-api-key", b"")
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else sent
