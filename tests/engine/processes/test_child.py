"""Child processes: readiness, stop, end, hang; output that cannot be logged; no process is left over."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from meshllm.engine.processes import child as process_module
from meshllm.engine.processes.child import TRANSITIONS, Child, ChildPhase, ChildSpec, Ending
from meshllm.engine.processes.child_log import LINE_LENGTH
from meshllm.engine.processes.child_registry import ChildRegistry

FAKE = Path(__file__).with_name("fake_child.py")
TIMEOUT = 120.0


class Rig:
    """A child that runs `fake_child.py`, and its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = ChildRegistry(folder / "children")
        self.log = folder / "logs" / "fake.log"
        self.healthy = False
        self.lines: list[str] = []
        self.ready = asyncio.Event()
        self.running = asyncio.Event()

    async def probe(self) -> bool:
        if not self.healthy:
            raise ConnectionRefusedError
        return True

    def on_line(self, line: str) -> bool:
        self.lines.append(line)
        if line.startswith("running"):
            self.running.set()
        return False

    def child(self, *behaviour: str, grace: float = 5.0, stall: float = 60.0) -> Child:
        spec = ChildSpec(
            name="fake",
            argv=(sys.executable, str(FAKE), *behaviour),
            environment=dict(os.environ),
            log=self.log,
            probe=self.probe,
            on_line=self.on_line,
            grace_seconds=grace,
            stall_seconds=stall,
        )
        return Child(spec, self.registry, lambda pid: self.ready.set())

    def entries(self) -> list[Path]:
        return list((self.folder / "children").glob("*.json"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def wait_for_end(pid: int) -> None:
    """Wait until the process has ended."""
    try:
        await asyncio.to_thread(psutil.Process(pid).wait, TIMEOUT)
    except psutil.NoSuchProcess:
        return


async def test_child_becomes_ready_and_stops_on_sigterm(rig: Rig) -> None:
    rig.healthy = True
    child = rig.child("run")
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.ready.wait()
        assert child.phase is ChildPhase.READY
        assert rig.entries()
        child.stop()
        ending = await life
    assert ending.requested
    assert ending.status == 128 + signal.SIGTERM
    assert child.phase is ChildPhase.GONE
    assert rig.entries() == []
    assert not psutil.pid_exists(child.pid)


async def test_child_that_ignores_sigterm_is_killed_after_the_grace_period(rig: Rig) -> None:
    child = rig.child("stubborn", grace=0.2)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        child.stop()
        ending = await life
    assert ending.status == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("behaviour", "status", "words"),
    [(("exit", "7"), 7, "status 7"), (("kill",), 137, "SIGKILL")],
    ids=["exit", "kill"],
)
async def test_child_end_is_reported_with_its_cause(
    rig: Rig, behaviour: tuple[str, ...], status: int, words: str
) -> None:
    async with asyncio.timeout(TIMEOUT):
        ending = await rig.child(*behaviour).run()
    assert ending.status == status
    assert words in ending.describe()
    assert not ending.requested
    assert any(line.startswith("about to") for line in ending.tail)


async def test_child_of_a_missing_program_ends_with_status_127(rig: Rig) -> None:
    spec = rig.child("run").spec
    child = Child(
        ChildSpec("none", ("/no/such/program",), spec.environment, spec.log, spec.probe), rig.registry, lambda pid: None
    )
    async with asyncio.timeout(TIMEOUT):
        ending = await child.run()
    assert ending.status == 127
    assert "cannot start" in " ".join(ending.tail)


async def test_child_output_is_bounded_and_escaped(rig: Rig) -> None:
    async with asyncio.timeout(TIMEOUT):
        ending = await rig.child("noise").run()
    assert ending.status == 3
    assert max(map(len, rig.lines)) == LINE_LENGTH
    assert rig.lines[0].endswith("x [line cut]")
    assert ending.tail[-1] == "no newline at the end"
    assert len(ending.tail) <= process_module.TAIL_LINES
    lines = rig.log.read_text().splitlines()
    assert lines[1:] == rig.lines
    assert lines[2] == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} broken \\x00 \\x1b[2J bytes"


async def test_child_is_read_and_its_end_reported_when_the_disk_is_full(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.log.parent.mkdir()
    rig.log.symlink_to("/dev/full")  # every write fails with ENOSPC
    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(TIMEOUT):
            ending = await rig.child("flood", "7").run()
    assert ending.describe() == "exited with status 7"
    assert ending.tail[-1] == "last line"
    assert [record.message for record in caplog.records] == [
        f"cannot write {rig.log} (No space left on device): output is dropped until that works"
    ]


async def test_child_is_read_when_a_line_handler_fails(rig: Rig) -> None:
    spec = rig.child("flood", "7").spec

    def fail(line: str) -> bool:
        raise ValueError(line)

    child = Child(dataclasses.replace(spec, on_line=fail), rig.registry, lambda pid: None)
    async with asyncio.timeout(TIMEOUT):
        ending = await child.run()
    assert ending.status == 7
    assert ending.tail[-1] == "last line"


async def test_child_log_is_rotated_while_the_child_runs(rig: Rig) -> None:
    spec = dataclasses.replace(rig.child("flood", "0").spec, log_bytes=100_000)
    async with asyncio.timeout(TIMEOUT):
        await Child(spec, rig.registry, lambda pid: None).run()
    old = rig.log.with_suffix(".old.log")
    assert rig.log.read_text().endswith("last line\n")
    assert old.stat().st_size + rig.log.stat().st_size < 400_000, "two files of 100 kB, and a chunk of output each"
    assert sorted(rig.log.parent.iterdir()) == [rig.log, old]


async def test_a_grandchild_that_left_the_group_ends_with_the_child(rig: Rig) -> None:
    note = rig.folder / "grandchild"
    async with asyncio.timeout(TIMEOUT):
        ending = await rig.child("escape", str(note)).run()
    assert ending.describe() == "exited with status 4"
    if sys.platform == "linux":
        assert not psutil.pid_exists(int(note.read_text()))
    else:
        os.kill(int(note.read_text()), signal.SIGKILL)


async def test_child_without_progress_while_loading_is_killed(rig: Rig) -> None:
    async with asyncio.timeout(TIMEOUT):
        ending = await rig.child("run", stall=0.5).run()
    assert ending.hung
    assert "stopped responding" in ending.describe()


async def test_child_that_fails_health_checks_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "HEALTH_TICK_SECONDS", 0.02)
    rig.healthy = True
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(rig.child("run").run())
        await rig.ready.wait()
        rig.healthy = False
        ending = await life
    assert ending.hung


async def test_cancelled_run_kills_the_child(rig: Rig) -> None:
    child = rig.child("stubborn", grace=60.0)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        life.cancel()
    assert child.phase is ChildPhase.GONE
    await wait_for_end(child.pid)
    assert rig.entries() == []


async def test_grandchild_ends_with_the_child(rig: Rig) -> None:
    note = rig.folder / "grandchild"
    child = rig.child("grandchild", str(note))
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        os.kill(child.pid, signal.SIGKILL)
        await life
    await wait_for_end(int(note.read_text()))


async def test_child_ends_when_the_reaper_is_killed(rig: Rig) -> None:
    child = rig.child("run")
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        reaper = psutil.Process(child.pid).parent()
        assert reaper is not None
        reaper.kill()
        ending = await life
    assert ending.status == 137
    await wait_for_end(child.pid)


def start_daemon(tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that runs a child as the daemon does; returns it and the child's pid."""
    program = f"""
import asyncio, os, sys
from pathlib import Path
from meshllm.engine.processes.child_log import LINE_LENGTH
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.child import Child, ChildSpec
async def probe(): return True
argv, log = (sys.executable, {str(FAKE)!r}, "run"), Path({str(tmp_path / "l.log")!r})
spec = ChildSpec("fake", argv, dict(os.environ), log, probe)
asyncio.run(Child(spec, ChildRegistry(Path({str(tmp_path / "children")!r})), lambda pid: print(pid, flush=True)).run())
"""
    daemon = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    return daemon, int(daemon.stdout.readline())


async def test_child_and_reaper_end_when_the_daemon_is_killed(tmp_path: Path) -> None:
    daemon, pid = start_daemon(tmp_path)
    try:
        reaper = psutil.Process(pid).parent()
        assert reaper is not None
        daemon.kill()
        daemon.wait()
        await wait_for_end(pid)
        await wait_for_end(reaper.pid)
    finally:
        daemon.kill()
        daemon.wait()
        assert daemon.stdout is not None
        daemon.stdout.close()


def test_child_transitions_cover_every_phase_and_end_in_gone() -> None:
    assert set(TRANSITIONS) == set(ChildPhase)
    assert TRANSITIONS[ChildPhase.GONE] == frozenset()
    assert all(ChildPhase.GONE in after for before, after in TRANSITIONS.items() if before is not ChildPhase.GONE)


def test_child_refuses_an_unlisted_transition(rig: Rig) -> None:
    child = rig.child("run")
    child._move(ChildPhase.STOPPING)
    with pytest.raises(RuntimeError, match=r"stopping.*ready"):
        child._move(ChildPhase.READY)


@pytest.mark.parametrize(("status", "word"), [(0, "status 0"), (139, "SIGSEGV"), (134, "SIGABRT"), (255, "signal 127")])
def test_ending_describes_its_status(status: int, word: str) -> None:
    assert word in Ending(status, False, False, ()).describe()
