"""Runs programs of the system (such as nvidia-smi) and returns their output.

Invariant: the output is bounded in time and size; a program that is missing, hangs or fails gives None, and no process
is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from typing import Final

MAX_OUTPUT_BYTES: Final = 1 << 20


async def output_of(*command: str, within: float) -> str | None:
    """The program's standard output if it exits with status 0 within `within` seconds, else None."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *command[1:],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None
    try:
        async with asyncio.timeout(within):
            output = await _bounded(process)
            status = await process.wait()
    except TimeoutError:
        return None
    finally:
        await end(process)
    return output if status == 0 else None


async def _bounded(process: asyncio.subprocess.Process) -> str | None:
    """The whole output, or None if it exceeds MAX_OUTPUT_BYTES (it is still read, so that the program can end)."""
    assert process.stdout is not None
    kept = bytearray()
    while chunk := await process.stdout.read(65_536):
        if len(kept) <= MAX_OUTPUT_BYTES:
            kept += chunk
    return kept.decode("utf-8", "replace") if len(kept) <= MAX_OUTPUT_BYTES else None


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill the process and its children (it leads a session of its own) if they still run; wait for its end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            pipe_open = process.stdout is not None and not process.stdout.at_eof()
            if process.returncode is None or pipe_open:  # it may have left a child that holds the pipe
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    waiting = asyncio.shield(process.wait())
    try:
        await waiting
    except asyncio.CancelledError:
        await process.wait()
        raise
