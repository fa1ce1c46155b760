"""A program of its own, `python tether.py LOCK COMMAND...`: runs COMMAND for as long as somebody holds our stdin.

Law: when stdin ends, because the build was cancelled or its process was killed, the command and all that it started
are stopped before this program ends. LOCK is held meanwhile: the next build of the same tree waits for that moment
(its own file lock is gone with its process, but ninja is not yet). The parent starts us in a session of our own.
Standard library only; run as a file, so that nothing else has to be imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from typing import NoReturn

GRACE = 10.0
"""Seconds that the command has between SIGTERM and SIGKILL. ninja needs them to stop its compilers."""


def main(arguments: list[str]) -> NoReturn:
    """Ends with the command's exit code; 128 + n where signal n ended it."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, unlike SIG_IGN, is not inherited by the command
    with open(arguments[0], "ab") as lock:  # noqa: PTH123 - a descriptor to lock, not content
        fcntl.flock(lock, fcntl.LOCK_EX)
        # All that the command starts has the other end: once it is closed they are gone, whoever their parents were.
        gone, theirs = os.pipe()
        command = subprocess.Popen(arguments[1:], stdin=subprocess.DEVNULL, pass_fds=(theirs,))
        os.close(theirs)
        stopping = threading.Event()
        threading.Thread(target=_watch, args=(command, stopping), daemon=True).start()
        code = command.wait()
        if stopping.is_set() and not select.select([gone], [], [], GRACE)[0]:
            os.killpg(0, signal.SIGKILL)
    os._exit(code if code >= 0 else 128 - code)


def _watch(command: subprocess.Popen[bytes], stopping: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stopping.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(0, signal.SIGTERM)  # our own group: we ignore it, the command does not
    try:
        command.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
