"""The standard streams of the process: closed ones are replaced, and errors of the others are recognised."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from contextlib import suppress
from typing import TextIO, TypeGuard

WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})


def open_closed_streams() -> None:
    """Open /dev/null on each of the descriptors 0 to 2 that is closed (`mesh-llm <&- >&-`) or open for the other
    direction only (`1</dev/null`), and a stream on it.

    Otherwise the next file or socket would get that number, and Python has None in place of the stream.
    """
    for number in range(3):
        if not _is_usable(number):
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = _stream(0, "r")
    if sys.stdout is None:
        sys.stdout = _stream(1, "w")
    if sys.stderr is None:
        sys.stderr = _stream(2, "w")


def _is_usable(number: int) -> bool:
    """Whether the descriptor is open: for reading if it is standard input, else for writing."""
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return False
    return mode != (os.O_RDONLY if number else os.O_WRONLY)


def _stream(number: int, mode: str) -> TextIO:
    return open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[return-value]


def output_error() -> OSError | None:
    """Flush standard output and return the error, None if it takes all. After an error, output is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        return error
    except ValueError:  # closed by the program
        return None
    return None


def drop_output() -> None:
    """Send standard output to /dev/null: Python flushes it at exit and would report the error again."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def is_broken_pipe(error: BaseException | None) -> bool:
    """Whether the reader of a pipe went away, as in `mesh-llm logs | head`."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def is_failed_write(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether a write to a descriptor failed. Without a buffer (PYTHONUNBUFFERED) a flush does not fail again."""
    return isinstance(error, OSError) and error.filename is None and error.errno in WRITE_ERRORS
