"""Runs one engine process and ends it when the daemon dies, also by SIGKILL.

    python -I -S child_reaper.py GRACE_SECONDS STOP_LINE PROGRAM [ARGUMENT ...]

Invariant: imports only the standard library; run with `-I -S` it starts in about 15 ms and takes about 9 MB.
The daemon holds the other end of standard input and writes nothing to it; end of file means that the daemon is gone.
The engine process leads a process group of its own, so that its children end with it. To stop it, SIGTERM is sent and,
unless it is empty, STOP_LINE is written to its standard input. The exit status is the engine's; 128 + N for signal N.

The first line on standard output is `reaper: PID`, PID being the engine process: the process to kill if the reaper
itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

PID_PREFIX = "reaper: "


def parse_pid(line: str) -> int:
    """The engine process's pid in the reaper's first line of output; 0 for any other line."""
    digits = line.removeprefix(PID_PREFIX)
    return int(digits) if line.startswith(PID_PREFIX) and digits.isascii() and digits.isdecimal() else 0


def die_with_parent() -> None:
    """Runs in the child before exec: Linux sends it SIGKILL when the reaper dies. Other systems have no such call."""
    if sys.platform.startswith("linux"):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the engine's process group, if it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def main() -> int:
    """Start, watch and end the program. Returns the exit status."""
    grace, stop_line, argv = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    # Signal handlers write to this pipe, so that one poll() waits for signals and for the end of standard input.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    stop_signals: list[int] = []
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stop_signals.append(number))
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stop_line else subprocess.DEVNULL,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - single-threaded
        )
    except OSError as error:
        print(f"reaper: cannot start {argv[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 127
    print(f"{PID_PREFIX}{child.pid}", flush=True)  # noqa: T201

    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(0, select.POLLHUP)
    deadline: float | None = None
    while child.poll() is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for descriptor, happened in poller.poll(None if left is None else left * 1000):
            if descriptor == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            elif happened:
                # The daemon is gone.
                poller.unregister(0)
                signal_group(child.pid, signal.SIGKILL)
        if stop_signals and deadline is None:
            deadline = time.monotonic() + grace
            signal_group(child.pid, signal.SIGTERM)
            if child.stdin is not None:
                with contextlib.suppress(OSError):  # it has ended already
                    os.write(child.stdin.fileno(), stop_line.encode() + b"\n")
        elif deadline is not None and time.monotonic() >= deadline:
            signal_group(child.pid, signal.SIGKILL)
            deadline = time.monotonic() + 1.0
    signal_group(child.pid, signal.SIGKILL)  # children that it left in its group
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
