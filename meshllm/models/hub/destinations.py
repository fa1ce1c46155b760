"""Where an answer of the hub may lead: the hub itself, and public servers with HTTPS.

A hostile hub could else make this machine send requests to the services of its network (routers, cloud metadata). The
address is checked where a connection is made, so that a name cannot change its meaning in between.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urljoin, urlsplit

from meshllm.errors import DownloadFailed

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Programs that tunnel all traffic give each name an address of this range; no service of a network has one (RFC 2544).
_TUNNELS = ipaddress.ip_network("198.18.0.0/15")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Destinations:
    """The rule for one endpoint. `proxies`: hosts of the environment's proxies, which may be anywhere."""

    def __init__(self, endpoint: str, proxies: Iterable[str] = ()) -> None:
        """Resolves nothing: whether the endpoint is inside of the network is found when it is connected to."""
        parts = urlsplit(endpoint)
        self._host = (parts.hostname or "").rstrip(".")
        self._scheme = parts.scheme
        self._proxies = frozenset(proxies)
        literal = _literal(self._host)
        # The user's own mirror may lead to its neighbours.
        self._inside = self._host == "localhost" or (literal is not None and not is_public(literal))

    def next_url(self, url: str, location: str) -> str:
        """The URL of a redirect from `url`. Raises DownloadFailed if it may not be followed."""
        try:
            found = urljoin(url, location)
            self.check_url(found)
        except ValueError:
            raise DownloadFailed("The hub answered with a redirect that is no address.") from None
        return found

    def check_url(self, url: str) -> None:
        """Raises DownloadFailed if `url` may not be requested, ValueError if it is none."""
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
        if parts.scheme == "https" or (parts.scheme == "http" and (self._inside or self._is_hub(parts.scheme, host))):
            literal = _literal(host)
            if literal is not None:
                self.check_address(host, literal)
            elif host == "localhost" or host.endswith(".localhost"):
                self.check_address(host, ipaddress.IPv4Address("127.0.0.1"))
            if host:
                return
        raise _refused(url)

    def check_address(self, host: str, address: Address | str) -> None:
        """Raises DownloadFailed if `host`, which has this address, may not be connected to."""
        found = _literal(address) if isinstance(address, str) else address
        if host.rstrip(".") == self._host or host in self._proxies:
            return
        if found is None or not (is_public(found) or (self._inside and not found.is_link_local)):
            raise _refused(host)

    def check_name(self, host: str) -> None:
        """Raises DownloadFailed if a name has an address that may not be connected to, OSError if it has none."""
        for *_, address in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM):
            self.check_address(host, str(address[0]))

    def _is_hub(self, scheme: str, host: str) -> bool:
        return host == self._host and scheme == self._scheme


def is_public(address: Address) -> bool:
    """Whether an address is one of the public network."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    elif address in _TUNNELS:
        return True
    return address.is_global and not address.is_multicast


def _literal(host: str) -> Address | None:
    """The address that `host` is, also in the forms that the system's resolver takes (127.1, 0x7f000001)."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host and host[0].isdigit() else None
    except (OSError, ValueError):
        return None


def _refused(where: str) -> DownloadFailed:
    host = urlsplit(where).hostname if "://" in where else where
    shown = "".join(letter if letter.isprintable() else "?" for letter in (host or "no host")[:100])
    return DownloadFailed(
        f"The hub sent this machine to {shown}, which is no public server with HTTPS.",
        advice="If that is your own mirror, name it in HF_ENDPOINT.",
    )
