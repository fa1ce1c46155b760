"""A child process and the one loop that owns its life.

Law: only `Child.run` changes the child's phase; callers send a wish (`stop`) and hear events. States and their
transitions are one table. A child is ready when its probe says so, and is given time for as long as it shows progress:
output, processor time or memory growing. Its death is seen at once; nothing of it is left when `run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from meshllm.engine.processes import child_reaper
from meshllm.engine.processes.child_registry import ChildRegistry, end_group
from meshllm.engine.processes.spawn import start
from meshllm.tasks import Owner

TAIL_LINES = 60
LINE_BYTES = 4096
LOG_BYTES = 8 << 20
# While it loads, the probe is asked this often; once ready, its health is checked this often.
LOADING_TICK_SECONDS = 0.25
HEALTH_TICK_SECONDS = 5.0
PROBE_DEADLINE_SECONDS = 5.0
# A ready child that fails this many health checks in a row (each with a deadline) hangs, and is ended.
HEALTH_FAILURES = 3
# The guard kills after the grace; should it be the guard that hangs, we do after this much more.
STOP_MARGIN_SECONDS = 5.0


class ChildPhase(Enum):
    """The life of a child."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    GONE = "gone"


TRANSITIONS: dict[ChildPhase, frozenset[ChildPhase]] = {
    ChildPhase.STARTING: frozenset({ChildPhase.READY, ChildPhase.STOPPING, ChildPhase.GONE}),
    ChildPhase.READY: frozenset({ChildPhase.STOPPING, ChildPhase.GONE}),
    ChildPhase.STOPPING: frozenset({ChildPhase.GONE}),
    ChildPhase.GONE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to know it.

    `probe` answers whether the child is ready (and, later, healthy); OSError, TimeoutError or ValueError mean no.
    `grace` is what it gets between SIGTERM and SIGKILL, `stall` how long it may show no progress while it loads (both
    seconds). `on_line` sees each line of its output, without the newline, and says whether it hints at being ready.
    `farewell` is the line by which a program that waits for one on its standard input is told to end.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    probe: Callable[[], Awaitable[bool]]
    on_line: Callable[[str], bool] = lambda line: False
    farewell: str = ""
    grace: float = 5.0
    stall: float = 120.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended: `status` as a shell gives it (128 + N for signal N), and the last lines it wrote."""

    status: int
    asked: bool
    hung: bool
    tail: tuple[str, ...]

    def words(self) -> str:
        """What happened, for people."""
        if self.hung:
            return "it stopped answering and was ended"
        if self.status > 128:
            number = self.status - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            return f"it was killed by {name}"
        return f"it exited with status {self.status}"


class Child:
    """One child process under a guard. `await run()` once; it returns when nothing of the child is left."""

    def __init__(self, spec: ChildSpec, ledger: ChildRegistry, on_ready: Callable[[int], None]) -> None:
        """`on_ready` is called once, with the process's pid, when the probe first says so."""
        self.spec = spec
        self.phase = ChildPhase.STARTING
        self.pid = 0
        self._ledger = ledger
        self._on_ready = on_ready
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._wake = asyncio.Event()
        self._stop_wanted = self._at_once = False
        self._hung = False
        self._last_sign = 0.0
        self._effort: tuple[float, int] = (0.0, 0)

    def stop(self, *, at_once: bool = False) -> None:
        """Wish for the child's end; `at_once`: without asking it first. Returns at once."""
        self._stop_wanted = True
        self._at_once = self._at_once or at_once
        self._wake.set()

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} pid={self.pid} {self.phase.value}>"

    async def run(self) -> Ending:
        """Live through the child's life. If cancelled, the child is killed, not stopped, before this returns."""
        words = [
            sys.executable,
            "-I",
            "-S",
            child_reaper.__file__,
            str(self.spec.grace),
            self.spec.farewell,
            *self.spec.argv,
        ]
        process = await start(words, environment=self.spec.environment)
        owner = Owner(f"child {self.spec.name}")
        try:
            reading = owner.start(self._read(process), "output")
            exited = owner.start(process.wait(), "exit")
            exited.add_done_callback(lambda task: self._wake.set())
            await self._watch(process, exited)
            status = await exited
            with contextlib.suppress(TimeoutError):
                # A grandchild that kept the pipe open must not keep us.
                await asyncio.wait_for(reading, timeout=1.0)
            return Ending(status if status >= 0 else 128 - status, self._stop_wanted, self._hung, tuple(self._tail))
        finally:
            self._end(process)
            await process.wait()  # after SIGKILL: no longer than the kernel takes
            await owner.close()
            self._move(ChildPhase.GONE)

    async def _watch(self, process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
        loop = asyncio.get_running_loop()
        self._last_sign = loop.time()
        failures = 0
        while not exited.done():
            tick = HEALTH_TICK_SECONDS if self.phase is ChildPhase.READY else LOADING_TICK_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout=tick)
            self._wake.clear()
            if exited.done():
                return
            if self._at_once:
                self._end(process)
                return
            if self._stop_wanted and self.phase is not ChildPhase.STOPPING:
                self._move(ChildPhase.STOPPING)
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()  # the guard passes it on and insists after the grace
            if self.phase is ChildPhase.STOPPING:
                await asyncio.wait({exited}, timeout=self.spec.grace + STOP_MARGIN_SECONDS)
                self._end(process)
                return
            healthy = await self._ask()
            if healthy and self.phase is ChildPhase.STARTING and not self._stop_wanted:
                self._move(ChildPhase.READY)
                self._on_ready(self.pid)
            if self.phase is ChildPhase.READY:
                failures = 0 if healthy else failures + 1
                stuck = failures >= HEALTH_FAILURES
            else:
                stuck = not self._shows_progress(loop.time())
            if stuck and not exited.done():
                self._hung = True
                self._end(process)

    async def _ask(self) -> bool:
        try:
            return await asyncio.wait_for(self.spec.probe(), timeout=PROBE_DEADLINE_SECONDS)
        except (OSError, TimeoutError, ValueError):
            return False

    def _shows_progress(self, now: float) -> bool:
        """Whether the child did anything within the last `stall` seconds, by its processor time and memory."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid) if self.pid else None
            if process is not None:
                times = process.cpu_times()
                effort = (round(times.user + times.system, 1), process.memory_info().rss >> 20)
                if effort != self._effort:
                    self._effort, self._last_sign = effort, now
        return now - self._last_sign < self.spec.stall

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take in the child's output, line by line, however it is cut: to its log, to `on_line`, to the tail."""
        assert process.stdout is not None
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        if self.spec.log.exists() and self.spec.log.stat().st_size > LOG_BYTES:
            self.spec.log.replace(self.spec.log.with_suffix(".old.log"))
        partial = b""
        with self.spec.log.open("ab") as log:
            while data := await process.stdout.read(1 << 16):
                log.write(data)
                log.flush()
                *lines, partial = (partial + data).split(b"\n")
                partial = partial[-LINE_BYTES:]
                for line in lines:
                    self._line(line[:LINE_BYTES].decode("utf-8", "replace").rstrip())
        if partial:
            self._line(partial.decode("utf-8", "replace").rstrip())

    def _line(self, line: str) -> None:
        if not self.pid and line.startswith("guard: ") and (pid := line[7:]).isdigit():
            self.pid = int(pid)
            self._ledger.add(self.pid, self.spec.name)
            return
        self._last_sign = asyncio.get_running_loop().time()
        if line:
            self._tail.append(line)
            if self.spec.on_line(line):
                self._wake.set()  # ask now rather than at the next tick

    def _end(self, process: asyncio.subprocess.Process) -> None:
        """SIGKILL for whatever of the child is left; for one that has ended, only its ledger entry goes."""
        if process.returncode is None:
            if self.pid:
                end_group(self.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        elif process.returncode == -signal.SIGKILL and self.pid:
            end_group(self.pid)  # the guard itself was killed: the engine must not outlive it
        if self.pid:
            self._ledger.remove(self.pid)

    def _move(self, to: ChildPhase) -> None:
        if to not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"{self!r} cannot become {to.value}")
        self.phase = to
