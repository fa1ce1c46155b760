"""Runs one engine process and ends it when the daemon dies, also by SIGKILL.

    python -I -S child_reaper.py GRACE_SECONDS STOP_LINE SANDBOX PROGRAM [ARGUMENT ...]

Invariant: imports only the standard library; run with `-I -S` it starts in about 15 ms and takes about 9 MB.
The daemon holds the other end of standard input and writes nothing to it; end of file means that the daemon is gone.
The engine process leads a process group of its own, so that its children end with it; on Linux, those that left the
group are adopted by the reaper and end, too. To stop it, SIGTERM is sent and,
unless it is empty, STOP_LINE is written to its standard input. The exit status is the engine's; 128 + N for signal N.

SANDBOX is a plan of meshllm.engine.sandbox (empty: none), applied between fork and exec. If it cannot be applied, the
program does not run, and the exit status is 126.

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

TYPE_CHECKING = False  # typing takes 2 ms to import
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

PID_PREFIX = "reaper: "
MAX_ORPHANS = 10_000


def parse_pid(line: str) -> int:
    """The engine process's pid in the reaper's first line of output; 0 for any other line."""
    digits = line.removeprefix(PID_PREFIX)
    return int(digits) if line.startswith(PID_PREFIX) and digits.isascii() and digits.isdecimal() else 0


def adopt_orphans() -> None:
    """A descendant whose parent ends becomes a child of this process (Linux)."""
    if sys.platform.startswith("linux"):
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill all children that are left, and theirs as they are adopted."""
    for _ in range(MAX_ORPHANS):
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123 - pathlib takes 5 ms to import
                pids = [int(word) for word in file.read().split()]
        except OSError:
            return  # not Linux, or a kernel without that file
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


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


class AppliedSandbox:
    """The sandbox of the program: applied in the child, its questions about connect() answered by the reaper."""

    def __init__(self, text: str) -> None:
        self.label = ""
        self.listener = -1
        self._plan: dict[str, Any] = {}
        self._here: socket.socket | None = None
        self._there: socket.socket | None = None
        if not text:
            return
        import json

        sys.path.append(os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - the package, after the library
        from meshllm.engine.sandbox import cage

        self._plan = json.loads(text)
        self.label = self._plan["label"]
        self._apply: Callable[[dict[str, Any]], int] = cage.apply
        if self._plan["asks"]:
            import socket

            self._here, self._there = socket.socketpair()

    def enter(self) -> None:
        """Runs in the child before exec. Without the sandbox there is no program."""
        die_with_parent()
        if not self._plan:
            return
        try:
            listener = self._apply(self._plan)
            if self._there is not None:
                import socket

                socket.send_fds(self._there, [b"."], [listener])
                os.close(listener)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not start
            os.write(2, f"reaper: cannot apply the sandbox: {error}\n".encode())
            os._exit(126)

    def started(self) -> None:
        """The program runs, in the sandbox: take the listener from it."""
        if self._here is None or self._there is None:
            return
        import socket

        self._there.close()
        _, descriptors, _, _ = socket.recv_fds(self._here, 1, 1)
        self.listener = descriptors[0] if descriptors else -1
        self._here.close()

    def answer(self) -> bool:
        """Answer one question. False: there will be none any more."""
        from meshllm.engine.sandbox import connect_broker

        return connect_broker.answer(self.listener, self._plan["connects"])


def main() -> int:
    """Start, watch and end the program. Returns the exit status."""
    grace, stop_line, sandbox, argv = float(sys.argv[1]), sys.argv[2], AppliedSandbox(sys.argv[3]), sys.argv[4:]
    # Signal handlers write to this pipe, so that one poll() waits for signals and for the end of standard input.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    stop_signals: list[int] = []
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stop_signals.append(number))
    adopt_orphans()
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stop_line else subprocess.DEVNULL,
            process_group=0,
            preexec_fn=sandbox.enter,  # noqa: PLW1509 - single-threaded
        )
    except OSError as error:
        print(f"reaper: cannot start {argv[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 127
    label = f"\nsandbox: {sandbox.label}" if sandbox.label else ""
    print(f"{PID_PREFIX}{child.pid}{label}", flush=True)  # noqa: T201
    sandbox.started()

    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(0, select.POLLHUP)
    if sandbox.listener >= 0:
        poller.register(sandbox.listener, select.POLLIN)
    deadline: float | None = None
    while child.poll() is None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for descriptor, happened in poller.poll(None if left is None else left * 1000):
            if descriptor == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            elif descriptor == sandbox.listener:
                if happened & select.POLLIN == 0 or not sandbox.answer():
                    poller.unregister(descriptor)
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
    end_orphans()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
