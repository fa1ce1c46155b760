"""Starting a process that ends with its stdin (a guard, a tether), so that a cancelled start leaves nothing behind.

Law: a start is finished once it has begun. asyncio's own, when it is cancelled, kills the process that it has made and
none of those which that one has started, and then waits for them without an end.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshllm.tasks import Owner


async def start(
    words: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Process:
    """A process in a session of its own, with pipes for stdin and for what it says. Raises OSError.

    If the call is cancelled, it returns once the process has ended, and with it whatever writes to the same pipe.
    """
    starting = Owner("start", lambda *_: None).start(
        asyncio.create_subprocess_exec(
            *words,
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=cwd,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
        ),
        Path(words[0]).name,
    )
    cancelled = False
    while not starting.done():
        try:
            await asyncio.wait({starting})
        except asyncio.CancelledError:
            cancelled = True
    process = starting.result()
    if cancelled:
        assert process.stdin is not None
        process.stdin.close()
        await process.communicate()
        raise asyncio.CancelledError
    return process
