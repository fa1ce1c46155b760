"""The URLs and the API key by which other machines reach this node's API and console.

Invariants: the key is read from the environment or from a file with mode 0600, and passed to nothing but the access
policy of the two servers.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from meshllm.errors import DamagedState, UsageError
from meshllm.net.addresses import InterfaceAddress, addresses, read_interfaces

KEY_VARIABLE = "MESH_LLM_API_KEY"
KEY_FILE = "api-key"
MAX_KEY_BYTES = 4096
# 16 characters of hexadecimal are 64 bits; at the rate that `web.http.key_guard` allows that is far out of reach.
MIN_KEY = 16
MAKE_KEY = "Make one: openssl rand -hex 16."
# Networks come and go; to read them takes a millisecond.
REFRESH_SECONDS = 15.0


def api_key(home: Path) -> tuple[str, Path | None]:
    """The key that other machines need, and its file: the environment's (no file), or the one in `home`, made once.

    Raises UsageError for an unusable key in the environment, DamagedState for an unusable file.
    """
    if key := os.environ.get(KEY_VARIABLE):
        if not _is_key(key):
            raise UsageError(
                f"The API key in {KEY_VARIABLE} has characters that an HTTP header cannot carry.",
                advice="Use a key of visible ASCII characters.",
            )
        if len(key) < MIN_KEY:
            raise UsageError(
                f"The API key in {KEY_VARIABLE} is too short: it can be guessed. It needs {MIN_KEY} characters.",
                advice=f"{MAKE_KEY} Or unset {KEY_VARIABLE}: the node then makes a key itself.",
            )
        return key, None
    path = home / KEY_FILE
    try:
        return _read_key(path) or _create_key(path), path
    except OSError as error:
        raise DamagedState(
            f"The API key file {path} cannot be read or written: {error.strerror or error}.",
            advice=f"Make it a file that this user can read and write, remove it, or set {KEY_VARIABLE}.",
        ) from error


def _read_key(path: Path) -> str:
    """The key in the file; empty if there is none. Raises DamagedState, OSError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except FileNotFoundError:
        return ""
    key = data.decode("ascii", "replace").strip()
    if len(data) > MAX_KEY_BYTES or (key and not _is_key(key)):
        raise DamagedState(
            f"The API key file {path} does not contain an API key.",
            advice="Remove it to get a new key, or write one line of visible ASCII characters to it.",
        )
    if key and len(key) < MIN_KEY:
        raise DamagedState(
            f"The API key in {path} is too short: it can be guessed. It needs {MIN_KEY} characters.",
            advice=f"Remove the file: the node then makes a key itself. {MAKE_KEY}",
        )
    path.chmod(0o600)
    return key


def _create_key(path: Path) -> str:
    key = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return key


def _is_key(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


class PublicUrls:
    """The hosts by which other machines reach this one: the names of `--allow-host`, then IP addresses."""

    def __init__(self, names: tuple[str, ...], clock: Callable[[], float]) -> None:
        """`clock` returns seconds, monotonic."""
        self._names = names
        self._clock = clock
        self._hosts: tuple[str, ...] = ()
        self._until: float | None = None

    def hosts(self) -> tuple[str, ...]:
        """Hosts as written in a URL, the most likely first; empty while no other machine can reach this one."""
        now = self._clock()
        if self._until is None or now >= self._until:
            self._until = now + REFRESH_SECONDS
            self._hosts = tuple(dict.fromkeys(map(_bracketed, (*self._names, *far(read_interfaces())))))
        return self._hosts


def far(facts: Iterable[InterfaceAddress]) -> list[str]:
    """The addresses of `facts` that other machines can use; IPv6 only where there is no IPv4.

    A content security policy cannot name an IPv6 address: the console would open there, but its chat would not work.
    """
    found = [ipaddress.ip_address(address.host) for address in addresses(facts, 1)]
    usable = [ip for ip in found if not ip.is_loopback]
    return [str(ip) for ip in usable if ip.version == 4] or [str(ip) for ip in usable]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
