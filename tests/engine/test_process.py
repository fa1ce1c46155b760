"""Children: readiness, death, stopping, hanging, and that nothing is ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from meshllm.engine.processes import child as process_module
from meshllm.engine.processes.child import TRANSITIONS, Child, ChildPhase, ChildSpec, Ending
from meshllm.engine.processes.child_registry import ChildRegistry, is_same_process

FAKE = Path(__file__).with_name("fake_child.py")
PATIENCE = 30.0


class Rig:
    """A child of `fake_child.py`, and what was heard of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = ChildRegistry(folder / "children")
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
            log=self.folder / "logs" / "fake.log",
            probe=self.probe,
            on_line=self.on_line,
            grace=grace,
            stall=stall,
        )
        return Child(spec, self.ledger, lambda pid: self.ready.set())

    def entries(self) -> list[Path]:
        return list((self.folder / "children").glob("*.json"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def gone(pid: int) -> None:
    """Wait until no such process runs."""
    try:
        await asyncio.to_thread(psutil.Process(pid).wait, PATIENCE)
    except psutil.NoSuchProcess:
        return


async def test_ready_then_stopped_politely(rig: Rig) -> None:
    rig.healthy = True
    child = rig.child("run")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.ready.wait()
        assert child.phase is ChildPhase.READY
        assert rig.entries()
        child.stop()
        ending = await life
    assert ending.asked
    assert ending.status == 128 + signal.SIGTERM
    assert child.phase is ChildPhase.GONE
    assert rig.entries() == []
    assert not psutil.pid_exists(child.pid)


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(rig: Rig) -> None:
    child = rig.child("stubborn", grace=0.2)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
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
async def test_death_is_seen_and_explained(rig: Rig, behaviour: tuple[str, ...], status: int, words: str) -> None:
    async with asyncio.timeout(PATIENCE):
        ending = await rig.child(*behaviour).run()
    assert ending.status == status
    assert words in ending.words()
    assert not ending.asked
    assert any(line.startswith("about to") for line in ending.tail)


async def test_a_program_that_is_not_there_ends_with_127_and_a_reason(rig: Rig) -> None:
    spec = rig.child("run").spec
    child = Child(
        ChildSpec("none", ("/no/such/program",), spec.environment, spec.log, spec.probe), rig.ledger, lambda pid: None
    )
    async with asyncio.timeout(PATIENCE):
        ending = await child.run()
    assert ending.status == 127
    assert "cannot start" in " ".join(ending.tail)


async def test_any_output_is_taken_in_and_bounded(rig: Rig) -> None:
    async with asyncio.timeout(PATIENCE):
        ending = await rig.child("noise").run()
    assert ending.status == 3
    assert max(map(len, rig.lines)) <= process_module.LINE_BYTES
    assert ending.tail[-1] == "no newline at the end"
    assert len(ending.tail) <= process_module.TAIL_LINES
    assert (rig.folder / "logs" / "fake.log").stat().st_size > 3_000_000


async def test_one_that_shows_no_progress_while_loading_is_ended(rig: Rig) -> None:
    async with asyncio.timeout(PATIENCE):
        ending = await rig.child("run", stall=0.5).run()
    assert ending.hung
    assert "stopped answering" in ending.words()


async def test_one_that_hangs_after_it_was_ready_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "HEALTH_TICK_SECONDS", 0.02)
    rig.healthy = True
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(rig.child("run").run())
        await rig.ready.wait()
        rig.healthy = False
        ending = await life
    assert ending.hung


async def test_cancelling_kills_and_leaves_nothing(rig: Rig) -> None:
    child = rig.child("stubborn", grace=60.0)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        life.cancel()
    assert child.phase is ChildPhase.GONE
    await gone(child.pid)
    assert rig.entries() == []


async def test_what_the_child_started_goes_with_it(rig: Rig) -> None:
    note = rig.folder / "grandchild"
    child = rig.child("grandchild", str(note))
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        os.kill(child.pid, signal.SIGKILL)
        await life
    await gone(int(note.read_text()))


async def test_killing_the_guard_ends_the_child(rig: Rig) -> None:
    child = rig.child("run")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        life = tasks.create_task(child.run())
        await rig.running.wait()
        guard = psutil.Process(child.pid).parent()
        assert guard is not None
        guard.kill()
        ending = await life
    assert ending.status == 137
    await gone(child.pid)


def start_daemon(tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that runs a child as the daemon does; returns it and the child's pid."""
    program = f"""
import asyncio, os, sys
from pathlib import Path
from meshllm.engine.ledger import Ledger
from meshllm.engine.process import Child, ChildSpec
async def probe(): return True
argv, log = (sys.executable, {str(FAKE)!r}, "run"), Path({str(tmp_path / "l.log")!r})
spec = ChildSpec("fake", argv, dict(os.environ), log, probe)
asyncio.run(Child(spec, Ledger(Path({str(tmp_path / "children")!r})), lambda pid: print(pid, flush=True)).run())
"""
    daemon = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    return daemon, int(daemon.stdout.readline())


async def test_kill_minus_nine_of_the_daemon_leaves_nothing(tmp_path: Path) -> None:
    daemon, pid = start_daemon(tmp_path)
    try:
        guard = psutil.Process(pid).parent()
        assert guard is not None
        daemon.kill()
        daemon.wait()
        await gone(pid)
        await gone(guard.pid)
    finally:
        daemon.kill()
        daemon.wait()
        assert daemon.stdout is not None
        daemon.stdout.close()


def test_the_ledger_ends_what_was_left_and_only_that(tmp_path: Path) -> None:
    ledger = ChildRegistry(tmp_path / "children")
    left, stranger = (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0) for _ in range(2)
    )
    try:
        ledger.add(left.pid, "left")
        ledger.add(stranger.pid, "stranger")
        entry = tmp_path / "children" / f"{stranger.pid}.json"
        told = json.loads(entry.read_text())
        entry.write_text(json.dumps({**told, "started": told["started"] - 3600}))  # its pid was used again
        (tmp_path / "children" / "1.json").write_text("{not json")
        (tmp_path / "children" / "2.json").write_text('{"pid": 1, "started": 0, "name": "init"}')
        assert ledger.end_leftovers() == ["left"]
        assert left.wait(PATIENCE) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list((tmp_path / "children").iterdir()) == []
    finally:
        for process in (left, stranger):
            process.kill()
            process.wait()
    assert not is_same_process(left.pid, told["started"])


def test_a_process_that_has_gone_is_not_written_down(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    ChildRegistry(tmp_path).add(done.pid, "gone")
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_transitions_is_complete_and_ends() -> None:
    assert set(TRANSITIONS) == set(ChildPhase)
    assert TRANSITIONS[ChildPhase.GONE] == frozenset()
    assert all(ChildPhase.GONE in after for before, after in TRANSITIONS.items() if before is not ChildPhase.GONE)


def test_an_unlisted_transition_is_refused_naming_both(rig: Rig) -> None:
    child = rig.child("run")
    child._move(ChildPhase.STOPPING)
    with pytest.raises(RuntimeError, match=r"stopping.*ready"):
        child._move(ChildPhase.READY)


@pytest.mark.parametrize(("status", "word"), [(0, "status 0"), (139, "SIGSEGV"), (134, "SIGABRT"), (255, "signal 127")])
def test_endings_are_told_in_words(status: int, word: str) -> None:
    assert word in Ending(status, False, False, ()).words()
