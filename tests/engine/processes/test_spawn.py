"""Starting a process: a cancelled start leaves no process behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshllm.engine.build import build_reaper
from meshllm.engine.processes.spawn import start
from meshllm.tasks import Owner

TIMEOUT = 120.0

# Writes the pid of its own child to a file and waits for that child.
PROGRAM = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended: the kernel closes its files, for which `start` waits, just before its end."""
    try:
        psutil.Process(pid).wait(TIMEOUT)
    except psutil.NoSuchProcess:
        return


async def test_cancelled_start_ends_the_process_and_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, started, note = asyncio.create_subprocess_exec, asyncio.Event(), tmp_path / "note"
    os.mkfifo(note)
    pids: list[int] = []
    before = psutil.Process().children()

    async def slow(*words: Any, **options: Any) -> Any:
        process = await real(*words, **options)
        pids.append(int(await asyncio.to_thread(note.read_text)))
        started.set()
        await asyncio.sleep(0)  # the cancellation arrives here
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    words = [sys.executable, "-I", "-S", build_reaper.__file__, str(tmp_path / "lock")]
    command = [sys.executable, "-c", PROGRAM, str(note)]
    work = Owner("test").start(start([*words, *command]), "start")
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    wait_for_end(pids[0])
    assert [child for child in psutil.Process().children() if child not in before] == []


async def test_start_of_a_missing_program_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await start([str(tmp_path / "nothing")])
