"""Asks the system's own programs (nvidia-smi and the like) for facts.

Law: an answer has a deadline and a limit; a program that is missing, hangs, fails or says nonsense is `None`, never an
error, and nothing of it is left running.
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
    """What the program prints on its standard output, if it ends well within so many seconds."""
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
    """All output, or None if it is too much (the rest is still read, so that the program can end)."""
    assert process.stdout is not None
    kept = bytearray()
    while chunk := await process.stdout.read(65_536):
        if len(kept) <= MAX_OUTPUT_BYTES:
            kept += chunk
    return kept.decode("utf-8", "replace") if len(kept) <= MAX_OUTPUT_BYTES else None


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the process and of all that it started (it leads a session of its own); wait for its end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            still_held = process.stdout is not None and not process.stdout.at_eof()
            if process.returncode is None or still_held:  # held: it ended, but left a child behind with our pipe
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    waiting = asyncio.shield(process.wait())
    try:
        await waiting
    except asyncio.CancelledError:
        await process.wait()
        raise
