"""Takes secrets out of this process's own arguments, where every user of the machine can read them (`ps`).

Law: it never fails. What cannot be hidden is left, and the caller told so. Between the start of the process and this,
the secret could be seen: a file or standard input (`--join @FILE`, `--join -`) is better, and the help says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

MASK = "*"
# Linux lets arguments take a quarter of the stack, 2 MiB by default and 6 MiB at most (execve(2)).
MAX_AREA_BYTES = 8 << 20
# /proc/self/stat (proc_pid_stat(5)): fields 48 and 49, counted from 1; what follows the name's bracket is field 3.
ARG_START, ARG_END, FIRST_AFTER_NAME = 48, 49, 3


def hide(values: Iterable[str]) -> bool:
    """Overwrite every argument that is one of `values`, or ends in `=` and one; True if none can be seen any more."""
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
    """The same in the memory that the kernel shows as /proc/PID/cmdline."""
    import ctypes
    import os
    from pathlib import Path

    told = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(told[ARG_START - FIRST_AFTER_NAME]), int(told[ARG_END - FIRST_AFTER_NAME])
    if not 0 < start < end <= start + MAX_AREA_BYTES:
        return False
    area = ctypes.string_at(start, end - start)
    # What lies there must be what the kernel shows: if not, it is not the area it is taken for.
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
    """The lengths of those secrets that are this argument, or what stands behind a `=` in it."""
    return [len(secret) for secret in secrets if argument == secret or argument.endswith(b"=" + secret)]
