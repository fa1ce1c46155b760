"""Processes whose start is cancelled while it goes on: nothing stays behind, and nobody waits without an end."""

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

# Says that it is there, and that of a process which it has started too, and lives until somebody ends it.
PROGRAM = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def gone(pid: int) -> bool:
    """Whether a process has ended; whoever inherited it may not have taken note yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_cancelled_start_takes_along_what_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun, told = asyncio.create_subprocess_exec, asyncio.Event(), tmp_path / "told"
    os.mkfifo(told)
    pids: list[int] = []
    before = psutil.Process().children()  # of a node that other tests use

    async def slow(*words: Any, **options: Any) -> Any:
        process = await real(*words, **options)
        pids.append(int(await asyncio.to_thread(told.read_text)))
        begun.set()
        await asyncio.sleep(0)  # here a cancellation hits whoever waits for the start
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    words = [sys.executable, "-I", "-S", build_reaper.__file__, str(tmp_path / "lock")]
    command = [sys.executable, "-c", PROGRAM, str(told)]
    work = Owner("test").start(start([*words, *command]), "start")
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert gone(pids[0])
    assert [child for child in psutil.Process().children() if child not in before] == []


async def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await start([str(tmp_path / "nothing")])
