"""Starts helper processes that end when their standard input is closed (child_reaper.py, build_reaper.py).

Invariant: a start that has begun is finished before `start` returns, also if it is cancelled. asyncio kills only the
process itself when `create_subprocess_exec` is cancelled, not what that process has started, and can then wait forever.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshllm.tasks import Owner


@dataclass(frozen=True, slots=True)
class SpawnedProcess:
    """A process and the read end of the pipe that its standard output and standard error write to.

    The pipe is not asyncio's own (`stdout=PIPE`): with that one, `process.wait()` returns only once the pipe is closed,
    so a grandchild that keeps it open would block the wait.
    """

    process: Process
    output: asyncio.StreamReader
    transport: asyncio.BaseTransport

    def close_output(self) -> None:
        """Stop reading. Idempotent."""
        self.transport.close()


async def start(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> SpawnedProcess:
    """Start `command` in a session of its own, with pipes for standard input and for its output. Raises OSError.

    If the call is cancelled, it returns once the process and everything that writes to its output have ended.
    """
    starting = Owner("start", lambda *_: None).start(_start(command, environment, cwd), Path(command[0]).name)
    cancelled = False
    while not starting.done():
        try:
            await asyncio.wait({starting})
        except asyncio.CancelledError:
            cancelled = True
    spawned = starting.result()
    if cancelled:
        assert spawned.process.stdin is not None
        spawned.process.stdin.close()
        while await spawned.output.read(1 << 16):
            pass
        spawned.close_output()
        await spawned.process.wait()
        raise asyncio.CancelledError
    return spawned


async def _start(command: Sequence[str], environment: Mapping[str, str] | None, cwd: Path | None) -> SpawnedProcess:
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=write_end,
            stderr=STDOUT,
            cwd=cwd,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    loop = asyncio.get_running_loop()
    output = asyncio.StreamReader(loop=loop)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output, loop=loop), os.fdopen(read_end, "rb", buffering=0)
    )
    return SpawnedProcess(process, output, transport)
