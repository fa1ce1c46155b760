"""How other machines reach this node's API and console, and with which key, where it lets them (`--listen-all`).

Law: the key is the owner's secret: it is read from the environment or from a file that only the owner can read, and
goes nowhere but into the policy of the two servers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from meshllm.net.addresses import InterfaceAddress, addresses, read_interfaces

KEY_VARIABLE = "MESH_LLM_API_KEY"
# Networks come and go; to look for them takes a millisecond.
LOOK_SECONDS = 15.0


def api_key(home: Path) -> tuple[str, Path | None]:
    """The key callers from elsewhere need: the environment's, or one made once and kept in a file only we can read."""
    if key := os.environ.get(KEY_VARIABLE):
        return key, None
    path = home / "api-key"
    with contextlib.suppress(FileNotFoundError):
        if key := path.read_text(encoding="ascii").strip():
            path.chmod(0o600)
            return key, path
    key = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key, path


class PublicUrls:
    """Where other machines find this one: by the names that its owner has given, and by its addresses."""

    def __init__(self, names: tuple[str, ...], clock: Callable[[], float]) -> None:
        """`clock` tells seconds, monotonic."""
        self._names = names
        self._clock = clock
        self._hosts: tuple[str, ...] = ()
        self._until: float | None = None

    def hosts(self) -> tuple[str, ...]:
        """As they stand in a URL, the likeliest first; none while no other machine can reach this one."""
        now = self._clock()
        if self._until is None or now >= self._until:
            self._until = now + LOOK_SECONDS
            self._hosts = tuple(dict.fromkeys(map(_bracketed, (*self._names, *far(read_interfaces())))))
        return self._hosts


def far(facts: Iterable[InterfaceAddress]) -> list[str]:
    """The addresses among `facts` that mean something on other machines; those of IPv6 only where there are no others.

    A browser's policy (CSP) cannot name an address of IPv6: the console's page could be opened there, but not chat.
    """
    found = [ipaddress.ip_address(address.host) for address in addresses(facts, 1)]
    usable = [ip for ip in found if not ip.is_loopback]
    return [str(ip) for ip in usable if ip.version == 4] or [str(ip) for ip in usable]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
