"""IPv4 packets: their ends, and replaced addresses and ports.

Pure. An invalid packet is None, never an exception: the wire drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

ICMP, TCP, UDP = 1, 6, 17
PROTOCOLS = {"icmp": ICMP, "tcp": TCP, "udp": UDP}
_HEADER_BYTES = 20
_ICMP_ECHO = (0, 8)
# Offset of a transport header's checksum, and the header's minimum length.
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2}
_LEAST_BYTES = {TCP: 20, UDP: 8, ICMP: 8}


@dataclass(frozen=True, slots=True)
class Addressing:
    """A packet's ends: addresses as integers; ports are 0 where there are none (an ICMP echo has its identifier)."""

    protocol: int
    source: int
    source_port: int
    destination: int
    destination_port: int


def number(address: str) -> int:
    """A dotted address as an integer."""
    a, b, c, d = (int(part) for part in address.split("."))
    return a << 24 | b << 16 | c << 8 | d


def addressing(packet: bytes | bytearray) -> Addressing | None:
    """Sender and receiver. None: not IPv4, or truncated."""
    if len(packet) < _HEADER_BYTES or packet[0] >> 4 != 4:
        return None
    protocol = packet[9]
    source = int.from_bytes(packet[12:16])
    destination = int.from_bytes(packet[16:20])
    ports = _ports(packet, protocol)
    return None if ports is None else Addressing(protocol, source, ports[0], destination, ports[1])


def _ports(packet: bytes | bytearray, protocol: int) -> tuple[int, int] | None:
    at = _transport_at(packet)
    if _is_fragment(packet) or protocol not in _LEAST_BYTES:
        return 0, 0
    if len(packet) < at + _LEAST_BYTES[protocol]:
        return None
    if protocol != ICMP:
        return int.from_bytes(packet[at : at + 2]), int.from_bytes(packet[at + 2 : at + 4])
    identifier = int.from_bytes(packet[at + 4 : at + 6]) if packet[at] in _ICMP_ECHO else 0
    return identifier, identifier


def _transport_at(packet: bytes | bytearray) -> int:
    return (packet[0] & 15) * 4


def _is_fragment(packet: bytes | bytearray) -> bool:
    return bool(int.from_bytes(packet[6:8]) & 0x3FFF)


def translatable(packet: bytes | bytearray) -> bool:
    """Whether ports can be changed: TCP, UDP or an ICMP echo, and whole."""
    protocol = packet[9]
    if _is_fragment(packet) or protocol not in _LEAST_BYTES:
        return False
    return protocol != ICMP or packet[_transport_at(packet)] in _ICMP_ECHO


def set_source(packet: bytearray, address: int, port: int) -> None:
    """Replace the sender and fix the checksums. The packet must be `translatable`."""
    _rewrite(packet, 12, 0, address, port)


def set_destination(packet: bytearray, address: int, port: int) -> None:
    """Replace the receiver and fix the checksums. The packet must be `translatable`."""
    _rewrite(packet, 16, 2, address, port)


def _rewrite(packet: bytearray, address_at: int, port_at: int, address: int, port: int) -> None:
    protocol, at = packet[9], _transport_at(packet)
    old_address = bytes(packet[address_at : address_at + 4])
    new_address = address.to_bytes(4)
    place = at + 4 if protocol == ICMP else at + port_at
    old_port, new_port = bytes(packet[place : place + 2]), port.to_bytes(2)
    packet[address_at : address_at + 4] = new_address
    packet[place : place + 2] = new_port
    _mend(packet, 10, old_address, new_address)
    checksum_at = at + _CHECKSUM_AT[protocol]
    if protocol == UDP and packet[checksum_at : checksum_at + 2] == b"\0\0":
        return  # the sender set none
    if protocol == ICMP:  # its checksum does not cover addresses
        _mend(packet, checksum_at, old_port, new_port)
    else:
        _mend(packet, checksum_at, old_address + old_port, new_address + new_port)
        if protocol == UDP and packet[checksum_at : checksum_at + 2] == b"\0\0":
            packet[checksum_at : checksum_at + 2] = b"\xff\xff"


def _mend(packet: bytearray, at: int, old: bytes, new: bytes) -> None:
    """The checksum at `at` after `old` became `new` (RFC 1624: ~(~HC + ~m + m'))."""
    total = ~int.from_bytes(packet[at : at + 2]) & 0xFFFF
    for index in range(0, len(old), 2):
        total += (~int.from_bytes(old[index : index + 2]) & 0xFFFF) + int.from_bytes(new[index : index + 2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[at : at + 2] = (~total & 0xFFFF).to_bytes(2)


def checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[index : index + 2]) for index in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
