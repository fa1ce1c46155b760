"""Answers connect() of a sandboxed process: only Unix sockets of a list, connected here and handed over.

Landlock before ABI 9 does not ask about Unix sockets, and through one (of D-Bus, of a container engine) a process can
have others run what it wants. The kernel asks here (seccomp_unotify(2)); the address is read once, the connection is
made from that copy, and the process's descriptor is replaced by the connected one: the process cannot change the
address after the check. Imports only the standard library: runs in the reaper.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

# ioctl numbers of include/uapi/linux/seccomp.h for the sizes of the structures below
_RECEIVE, _SEND, _IS_VALID, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_REQUEST = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with struct seccomp_data
_ANSWER = struct.Struct("=QqiI")
_DESCRIPTOR = struct.Struct("=QIIII")
_REPLACE = 1  # SECCOMP_ADDFD_FLAG_SETFD
_ADDRESS_BYTES = 110  # struct sockaddr_un
_CONNECT_SECONDS = 5.0


def answer(listener: int, allowed: list[str]) -> bool:
    """Answer one request. False: the listener has no process any more."""
    buffer = bytearray(_REQUEST.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        return error.errno in (errno.EINTR, errno.ENOENT)  # ENOENT: the thread ended before it was heard
    request, thread, _, _, _, _, descriptor, address, length, *_ = _REQUEST.unpack(buffer)
    number = _connect(listener, request, thread, (descriptor & 0xFFFFFFFF, address, length), allowed)
    try:
        fcntl.ioctl(listener, _SEND, _ANSWER.pack(request, 0, -number, 0))
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def _connect(listener: int, request: int, thread: int, call: tuple[int, int, int], allowed: list[str]) -> int:
    """Connect the process's descriptor. Returns 0 or the error number for the process."""
    descriptor, address, length = call
    try:
        memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Still valid: the memory is that thread's, not that of a successor with its number.
            fcntl.ioctl(listener, _IS_VALID, struct.pack("=Q", request))
            path = _path(os.pread(memory, min(length, _ADDRESS_BYTES), address))
        finally:
            os.close(memory)
        if path not in allowed:
            return errno.EACCES
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            connection.connect(path)
            connection.setblocking(True)
            given = _DESCRIPTOR.pack(request, _REPLACE, connection.fileno(), descriptor, 0)
            fcntl.ioctl(listener, _ADD_DESCRIPTOR, given)
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno or errno.EACCES
    return 0


def _path(address: bytes) -> str:
    """The path in a struct sockaddr_un; "" for any other address."""
    if len(address) < 3 or struct.unpack_from("=H", address)[0] != socket.AF_UNIX:
        return ""
    return os.fsdecode(address[2:].split(b"\0", 1)[0])
