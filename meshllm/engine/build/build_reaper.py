"""Runs a build command and ends it when the build ends: `python build_reaper.py LOCK COMMAND...`.

Invariant: when standard input ends, because the build was cancelled or its process was killed, the command and all that
it started are ended before this program exits. LOCK is held meanwhile, so that the next build of the same tree waits:
the build's own file lock is released with its process, while ninja may still run. The parent starts this program in a
session of its own. Standard library only; run as a file, so that no package is imported.
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
"""Seconds between SIGTERM and SIGKILL; ninja uses them to stop its compilers."""


def main(arguments: list[str]) -> NoReturn:
    """Exits with the command's exit code; 128 + n for signal n."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # a handler, unlike SIG_IGN, is not inherited by the command
    with open(arguments[0], "ab") as lock:  # noqa: PTH123 - a descriptor to lock, not content
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The command and its descendants inherit the write end: once the pipe is closed, all of them have ended.
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
