"""Runs one engine process and takes it along when the daemon dies, however it dies.

    python -I -S guard.py GRACE_SECONDS FAREWELL PROGRAM [ARGUMENT ...]

Law: this file imports only the standard library, runs with `-I -S` (it starts in some 15 ms and stays at about 9 MB),
and has no other job. Standard input is the lifeline: nobody writes to it, and its end means that the daemon is gone,
which the kernel tells us even after `kill -9`. The engine process gets a process group of its own, so that what it may
start goes with it. When it is to end it gets SIGTERM; and FAREWELL, unless that is empty, as a line on its standard
input, for a program that waits there. Its exit status becomes ours; a death by signal N becomes 128 + N, as shells do.

The first line on standard output is `guard: PID`, PID being the engine process's: what must be killed should this one
be killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time


def die_with_parent() -> None:
    """In the child, before exec: ask Linux for SIGKILL should the guard be killed. Other systems have no such call."""
    if sys.platform.startswith("linux"):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the engine's process group, which may already be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def main() -> int:
    """Start, watch, and end the program. Returns the exit status to end with."""
    grace, farewell, argv = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    # One pipe carries "something happened" out of signal handlers into the one place that waits.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    wanted_end: list[int] = []
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: wanted_end.append(number))
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if farewell else subprocess.DEVNULL,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - single-threaded
        )
    except OSError as error:
        print(f"guard: cannot start {argv[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 127
    print(f"guard: {child.pid}", flush=True)  # noqa: T201

    lifeline = select.poll()
    lifeline.register(wake_read, select.POLLIN)
    lifeline.register(0, select.POLLHUP)  # only its end matters
    deadline: float | None = None
    while child.poll() is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for descriptor, happened in lifeline.poll(None if left is None else left * 1000):
            if descriptor == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            elif happened:
                # The daemon is gone: nobody is left to be polite to.
                lifeline.unregister(0)
                signal_group(child.pid, signal.SIGKILL)
        if wanted_end and deadline is None:
            deadline = time.monotonic() + grace
            signal_group(child.pid, signal.SIGTERM)
            if child.stdin is not None:
                with contextlib.suppress(OSError):  # it is gone already
                    os.write(child.stdin.fileno(), farewell.encode() + b"\n")
        elif deadline is not None and time.monotonic() >= deadline:
            signal_group(child.pid, signal.SIGKILL)
            deadline = time.monotonic() + 1.0
    signal_group(child.pid, signal.SIGKILL)  # what it may have left behind in its group
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
