"""Runs the programs of a build (pip, cmake, ninja): output to a log file, the last lines kept in memory.

Invariant: a program and its children end with the coroutine that awaits it and with this process (build_reaper.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meshllm.engine.processes.child_log import ChildLog, LineSplitter
from meshllm.engine.processes.spawn import SpawnedProcess, start

TAIL_LINES = 400
LINE_LENGTH = 16 * 1024
LOG_BYTES = 32 << 20
_REAPER = Path(__file__).with_name("build_reaper.py")


class CommandFailed(Exception):
    """A program ended with an exit code other than 0; `tail` holds its last lines."""

    def __init__(self, code: int, tail: Sequence[str]) -> None:
        super().__init__(f"exit code {code}")
        self.code = code
        self.tail = tuple(tail)


async def run(
    command: Sequence[str | Path],
    *,
    lock: Path,
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> tuple[str, ...]:
    """Run `command`, append its output to `log` (see ChildLog) and return its last lines.

    `lock` is held while the command runs. A cancelled call returns once the command and its children have ended.
    Raises CommandFailed, or OSError if the command cannot be started.
    """
    argv = [str(word) for word in command]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    splitter = LineSplitter(LINE_LENGTH)
    with ChildLog(log, LOG_BYTES) as sink:

        def take(lines: Sequence[str]) -> None:
            sink.write(lines)
            tail.extend(lines)
            if on_line is not None:
                for line in lines:
                    on_line(line)

        sink.write([f"$ {' '.join(argv)}"])
        spawned = await start(
            [sys.executable, "-I", "-S", str(_REAPER), str(lock), *argv], environment=environment, cwd=cwd
        )
        try:
            while chunk := await spawned.output.read(1 << 16):
                take(splitter.feed(chunk))
            take(splitter.finish())
            code = await spawned.process.wait()
        finally:
            await _end(spawned)
    if code:
        raise CommandFailed(code, tail)
    return tuple(tail)


async def _end(spawned: SpawnedProcess) -> None:
    """Close the reaper's standard input and wait until it has ended the command, however often this is cancelled."""
    process = spawned.process
    assert process.stdin is not None
    process.stdin.close()
    try:
        if process.returncode is not None:
            return
        cancelled = await _drain_within(spawned, 20.0)  # twice the reaper's own grace period
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            cancelled = await _drain_within(spawned, 20.0) or cancelled
    finally:
        spawned.close_output()
    if cancelled:
        raise asyncio.CancelledError


async def _drain_within(spawned: SpawnedProcess, seconds: float) -> bool:
    """Wait at most `seconds` for the end of the process. Returns whether the caller was cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    deadline, cancelled = loop.time() + seconds, False
    while spawned.process.returncode is None and loop.time() < deadline:
        try:
            async with asyncio.timeout_at(deadline):
                await _drain(spawned)
        except asyncio.CancelledError:
            cancelled = True
        except TimeoutError:
            break
    return cancelled


async def _drain(spawned: SpawnedProcess) -> None:
    """Discard output, or the process would block in a write to a full pipe, and wait for its end."""
    while await spawned.output.read(1 << 16):
        pass
    await spawned.process.wait()
