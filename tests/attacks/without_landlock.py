"""Runs a program where Landlock's system calls fail, as in a container whose seccomp profile does not know them.

python without_landlock.py PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from meshllm.engine.sandbox import cage

LOAD, AT_LEAST, GREATER, RETURN = 0x20, 0x35, 0x25, 0x06
FILTER = [
    (LOAD, 0, 0, 0), (AT_LEAST, 0, 2, 444), (GREATER, 1, 0, 446), (RETURN, 0, 0, 0x50000 | errno.EPERM),
    (RETURN, 0, 0, 0x7FFF0000),
]  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.prctl(38, 1, 0, 0, 0)  # no new privileges
cage.install_filter(libc, b"".join(struct.pack("=HBBI", *line) for line in FILTER), 0xFFFFFFFF, listener=False)
os.execv(sys.argv[1], sys.argv[1:])
