"""Landlock: access rights by ABI version, and the rules for a policy. Pure; cage.py makes the system calls.

Numbers: Linux, include/uapi/linux/landlock.h. ABI 1 is Linux 5.13, 2: 5.19 (REFER), 3: 6.2 (TRUNCATE), 4: 6.7 (TCP),
5: 6.10 (IOCTL_DEV), 6: 6.12 (scopes), 7: 6.15 (no new right).
"""

from __future__ import annotations

from typing import Final

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
NET_BIND_TCP, NET_CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1

LAST_ABI: Final = 7  # a later kernel is asked for what this one knows

READ: Final = READ_FILE | READ_DIR
READ_AND_RUN: Final = READ | EXECUTE
DEVICE: Final = READ | WRITE_FILE | IOCTL_DEV
SOCKETS: Final = READ | MAKE_SOCK | REMOVE_FILE
FILES: Final = READ | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR


def handled_files(abi: int) -> int:
    """Every right on files that a kernel with `abi` can deny."""
    rights = (1 << 13) - 1
    rights |= REFER if abi >= 2 else 0
    rights |= TRUNCATE if abi >= 3 else 0
    return rights | (IOCTL_DEV if abi >= 5 else 0)


def handled_network(abi: int) -> int:
    """Every right on TCP ports that a kernel with `abi` can deny."""
    return NET_BIND_TCP | NET_CONNECT_TCP if abi >= 4 else 0


def scopes(abi: int) -> int:
    """What a kernel with `abi` can keep inside: signals and connections to abstract sockets."""
    return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= 6 else 0
