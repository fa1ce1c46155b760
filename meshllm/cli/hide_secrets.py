"""Overwrites secrets in this process's own arguments, which every user of the machine can read (`ps`).

Never raises: `hide` returns False where a secret stays visible. It is visible between the start of the process and
`hide_invites` in any case (Python's own start, some 20 ms); `--join @FILE` and `--join -` avoid that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress

MASK = "*"
# An invite is some hundred characters; a shorter argument that begins like one is a name.
MIN_INVITE = 20
# Linux lets arguments take a quarter of the stack, 2 MiB by default and 6 MiB at most (execve(2)).
MAX_AREA_BYTES = 8 << 20
# /proc/self/stat (proc_pid_stat(5)): fields 48 and 49, counted from 1; behind the name's bracket comes field 3.
ARG_START, ARG_END, FIRST_AFTER_NAME = 48, 49, 3


def hide_invites() -> None:
    """Overwrite what looks like an invite in the memory that others see, and leave `sys.argv` to those who read it."""
    found = [argument[argument.index("mesh") :] for argument in sys.argv[1:] if _is_invite(argument)]
    if found and sys.platform == "linux":
        with suppress(Exception):
            _overwrite(found)


def _is_invite(argument: str) -> bool:
    value = argument.removeprefix("--join=")
    start, dash, rest = value.partition("-")
    return start.startswith("mesh") and start[4:].isdigit() and bool(dash) and len(rest) > MIN_INVITE


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
