"""Checks untrusted msgpack: each function returns a value within its bounds or raises `BadMessage`.

Invariants: the unpacker refuses lengths above its limits before it allocates; an error names the field, never the
value.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Any

import msgpack

from meshllm.core.records import MAX_NAME_BYTES, MAX_NUMBER, PeerAddress
from meshllm.errors import BadMessage

MAX_PORT = 65535
# Characters that a text shown to users must not have: control characters, and those that hide or reorder text. The list
# is fixed, because Python's own differs between versions and nodes must agree on what is a valid record.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def unpack(data: bytes, *, max_text: int, max_bytes: int, max_items: int) -> tuple[Any, ...]:
    """The msgpack array `data`, nested arrays as tuples. Maps and extensions are refused; limits in bytes and items."""
    try:
        value = msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            max_str_len=max_text,
            max_bin_len=max_bytes,
            max_array_len=max_items,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"not a message: {type(error).__name__}") from error
    if type(value) is not tuple:
        raise BadMessage("not a message: not an array")
    return value


def fields(value: Any, least: int, what: str) -> tuple[Any, ...]:
    """An array of at least `least` fields; further ones belong to newer versions."""
    if type(value) is not tuple or len(value) < least:
        raise BadMessage(f"{what}: not an array of {least} fields")
    return value


def items(value: Any, most: int, what: str) -> tuple[Any, ...]:
    """An array of at most `most` items."""
    if type(value) is not tuple or len(value) > most:
        raise BadMessage(f"{what}: not an array of at most {most}")
    return value


def number(value: Any, what: str, low: int = 0, high: int = MAX_NUMBER) -> int:
    """An integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise BadMessage(f"{what}: not a number from {low} to {high}")
    return value


def flag(value: Any, what: str) -> bool:
    """A bool."""
    if type(value) is not bool:
        raise BadMessage(f"{what}: not a bool")
    return value


def exactly(value: Any, length: int, what: str) -> bytes:
    """`length` bytes."""
    if type(value) is not bytes or len(value) != length:
        raise BadMessage(f"{what}: not {length} bytes")
    return value


def multiple(value: Any, size: int, most: int, what: str) -> bytes:
    """At most `most` entries of `size` bytes, back to back."""
    if type(value) is not bytes or len(value) % size or len(value) > size * most:
        raise BadMessage(f"{what}: not at most {most} entries of {size} bytes")
    return value


def is_text(value: str) -> bool:
    """Whether a text is short and printable enough for a record."""
    return len(value) <= MAX_NAME_BYTES and not UNPRINTABLE.search(value) and len(value.encode()) <= MAX_NAME_BYTES


def text(value: Any, what: str) -> str:
    """A printable text, possibly empty."""
    if type(value) is not str or not is_text(value):
        raise BadMessage(f"{what}: not a printable text of at most {MAX_NAME_BYTES} bytes")
    return value


def name(value: Any, what: str) -> str:
    """A printable text that is not empty."""
    if not value:
        raise BadMessage(f"{what}: empty")
    return text(value, what)


def names(value: Any, most: int, what: str) -> tuple[str, ...]:
    """At most `most` names."""
    return tuple([name(item, what) for item in items(value, most, what)])


def pack_host(host: str) -> bytes | None:
    """The 4 or 16 bytes of an IP literal that a peer may be asked to dial, else None.

    Names and scoped, unspecified, broadcast and multicast addresses are refused: a node must not be made to send to
    those. IPv4-mapped IPv6 becomes IPv4, so that an address has one form.
    """
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            return None
        found = found.ipv4_mapped or found
    return found.packed if _dialable(found) else None


def _dialable(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not host.is_unspecified and not host.is_multicast and host != _BROADCAST


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


@lru_cache(maxsize=4096)
def unpack_host(packed: bytes) -> str | None:
    """The IP literal of 4 or 16 bytes, or None for bytes that `pack_host` does not produce."""
    if len(packed) not in (4, 16):
        return None
    host = str(ipaddress.ip_address(packed))
    return host if pack_host(host) == packed else None


def address(value: Any, what: str) -> PeerAddress:
    """An address: `[packed host, port]`."""
    host, port, *_ = fields(value, 2, what)
    literal = unpack_host(host) if type(host) is bytes else None
    if literal is None:
        raise BadMessage(f"{what}: not an IP address")
    return PeerAddress(literal, number(port, f"{what}'s port", 1, MAX_PORT))
