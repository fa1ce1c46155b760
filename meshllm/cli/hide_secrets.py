"""Overwrites secrets in this process's own arguments, which every user of the machine can read (`ps`).

Never raises: `hide` returns False where a secret stays visible. It is visible between the start of the process and
`hide` in any case; `--join @FILE` and `--join -` avoid that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

MASK = "*"
# Linux lets arguments take a quarter of the stack, 2 MiB by default and 6 MiB at most (execve(2)).
MAX_AREA_BYTES = 8 << 20
# /proc/self/stat (proc_pid_stat(5)): fields 48 and 49, counted from 1; behind the name's bracket comes field 3.
ARG_START, ARG_END, FIRST_AFTER_NAME = 48, 49, 3


def hide(values: Iterable[str]) -> bool:
    """Overwrite every argument that is one of `values` or ends in `=` and one. True if none is visible any more."""
    wanted = [value for value in values if value]
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [_masked(argument, wanted) for argument in arguments]
    hidden = not wanted
    if wanted and sys.platform == "linux":
        with suppress(Exception):
            hidden = _overwrite(wanted)
    return hidden


def _masked(argument: str, values: list[str]) -> str:
    for value in values:
        if argument == value or argument.endswith(f"={value}"):
            return argument[: len(argument) - len(value)] + MASK * len(value)
    return argument


def _overwrite(values: list[str]) -> bool:
    """Overwrite them in the memory that the kernel shows as /proc/PID/cmdline."""
    import ctypes
    import os
    from pathlib import Path

    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[ARG_START - FIRST_AFTER_NAME]), int(fields[ARG_END - FIRST_AFTER_NAME])
    if not 0 < start < end <= start + MAX_AREA_BYTES:
        return False
    area = ctypes.string_at(start, end - start)
    # Write only if this memory holds what the kernel shows.
    if area != Path("/proc/self/cmdline").read_bytes():
        return False
    secrets = [os.fsencode(value) for value in values]
    at = start
    for argument in area.split(b"\0"):
        for length in _ends(argument, secrets):
            ctypes.memset(at + len(argument) - length, ord(MASK), length)
        at += len(argument) + 1
    left = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    return not any(_ends(argument, secrets) for argument in left)


def _ends(argument: bytes, secrets: list[bytes]) -> list[int]:
    """The lengths of those secrets that are this argument, or its part behind a `=`."""
    return [len(secret) for secret in secrets if argument == secret or argument.endswith(b"=" + secret)]
