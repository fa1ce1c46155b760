"""Runs the build's programs: every line to a log, a bounded tail in memory, and nothing left when the build stops.

Law: a program lives no longer than the coroutine that waits for it, nor than this process, however it ends (tether.py).
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

from meshllm.engine.processes.spawn import start

TAIL_LINES = 400
MAX_LINE_BYTES = 16 * 1024
_TETHER = Path(__file__).with_name("build_reaper.py")


class Failed(Exception):
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
    """Run `command`, append its output to `log`, and return its last lines. Raises Failed, or OSError for the log.

    `lock` is held while the command lives. A cancelled call returns when the command and its children are gone.
    """
    words = [str(word) for word in command]
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with log.open("ab") as sink:
        sink.write(f"$ {' '.join(words)}\n".encode())
        tether = [sys.executable, "-I", "-S", str(_TETHER), str(lock)]
        process = await start([*tether, *words], environment=environment, cwd=cwd)
        assert process.stdout is not None
        try:
            await _pump(process.stdout, sink.write, tail, on_line)
            code = await process.wait()
        finally:
            await _end(process)
    if code:
        raise Failed(code, tail)
    return tuple(tail)


async def _pump(
    output: asyncio.StreamReader,
    write: Callable[[bytes], object],
    tail: deque[str],
    on_line: Callable[[str], None] | None,
) -> None:
    """Lines can be longer than any buffer (a linker's command): they are cut for the tail, never for the log."""
    pending = b""
    while chunk := await output.read(65536):
        write(chunk)
        *lines, pending = (pending + chunk).split(b"\n")
        pending = pending[:MAX_LINE_BYTES]
        for line in lines:
            text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
            tail.append(text)
            if on_line is not None:
                on_line(text)
    if pending:
        tail.append(pending.decode("utf-8", "replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let go of the tether and wait until it has brought everything down, whoever cancels us meanwhile."""
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is not None:
        return
    cancelled = await _drain_within(process, 20.0)  # twice the tether's own grace
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        cancelled = await _drain_within(process, 20.0) or cancelled
    if cancelled:
        raise asyncio.CancelledError


async def _drain_within(process: asyncio.subprocess.Process, seconds: float) -> bool:
    """Wait for the end of `process`, but not longer. Returns whether we were cancelled meanwhile (and waited on)."""
    loop = asyncio.get_running_loop()
    deadline, cancelled = loop.time() + seconds, False
    while process.returncode is None and loop.time() < deadline:
        try:
            async with asyncio.timeout_at(deadline):
                await _drain(process)
        except asyncio.CancelledError:
            cancelled = True
        except TimeoutError:
            break
    return cancelled


async def _drain(process: asyncio.subprocess.Process) -> None:
    """A process that nobody reads from does not count as ended: asyncio waits for its pipes too."""
    assert process.stdout is not None
    while await process.stdout.read(65536):
        pass
    await process.wait()
