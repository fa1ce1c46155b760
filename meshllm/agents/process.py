"""Starts an agent and waits for its end. The terminal is the agent's: Ctrl-C reaches it alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from meshllm.errors import EnvironmentFailure

VERSION_SECONDS = 10.0
MAX_VERSION = 80
PR_SET_PDEATHSIG = 1
# Signals of the terminal: the agent gets them itself, being in the same process group.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LOOPBACK = "localhost,127.0.0.1,::1"


def find_program(programs: Sequence[str]) -> str | None:
    """The first of `programs` (names in PATH, or paths) that can be executed."""
    return next((found for name in programs if (found := shutil.which(name)) is not None), None)


def version_of(program: str, arguments: Sequence[str]) -> str:
    """What a program says its version is, on one line; empty if it does not say."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    text = next((line for line in lines if any(letter.isdigit() for letter in line)), "")
    return "".join(letter for letter in text if letter.isprintable())[:MAX_VERSION]


def environment(base: Mapping[str, str], env: Mapping[str, str], unset: Sequence[str]) -> dict[str, str]:
    """The environment of an agent. Where a proxy is set, the node is not reached through it."""
    found = {name: value for name, value in base.items() if name not in unset} | dict(env)
    if any(found.get(name) for name in PROXY_VARIABLES):
        excepted = found.get("NO_PROXY") or found.get("no_proxy") or ""
        found["NO_PROXY"] = found["no_proxy"] = f"{excepted},{LOOPBACK}".lstrip(",")
    return found


def run_agent(argv: Sequence[str], env: Mapping[str, str], on_start: Callable[[], None]) -> int:
    """Run an agent in the foreground; returns its exit status, as a shell gives it for one that a signal has ended.

    `on_start` is called once it runs. Raises EnvironmentFailure if it cannot be started.
    """
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        if child is not None:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    with _signals(forward):
        try:
            # Safe: this process has one thread, and what runs between fork and exec allocates next to nothing.
            child = subprocess.Popen(list(argv), env=dict(env), preexec_fn=_end_with_parent())  # noqa: PLW1509
        except OSError as error:
            raise EnvironmentFailure(
                f"{argv[0]} cannot be started: {error.strerror or error}.", advice="Check its installation."
            ) from error
        on_start()
        status = child.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _signals(forward: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within: signals of the terminal change nothing here, others are passed on. Handlers, unlike an ignored signal,
    are not inherited by the agent."""
    before: dict[signal.Signals, Any] = {}
    for number in (*TERMINAL_SIGNALS, *FORWARDED_SIGNALS):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup
        handler = forward if number in FORWARDED_SIGNALS else _nothing
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The agent gets this signal itself."""


def _end_with_parent() -> Callable[[], None] | None:
    """What lets a child end with SIGHUP when this process is killed, as with the terminal; Linux only."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(128 + signal.SIGHUP)

    return ask


def shown_program(program: str) -> str:
    """A program for a table: its path with ~ for the home."""
    with suppress(ValueError, RuntimeError):
        return f"~/{Path(program).relative_to(Path.home())}"
    return program
