"""A child process: start, readiness probe, health checks, stop, and how it ended.

Invariants: only `Child.run` changes the phase, along TRANSITIONS. When `run` has returned, the child and its process
group are gone. The child's output is read until the child ends, whatever fails meanwhile (full disk, `on_line`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from meshllm.engine.processes import child_reaper
from meshllm.engine.processes.child_log import LOG_BYTES, ChildLog, LineSplitter
from meshllm.engine.processes.child_registry import ChildRegistry, kill_group
from meshllm.engine.processes.spawn import start
from meshllm.engine.sandbox import macos
from meshllm.engine.sandbox.policy import Sandbox
from meshllm.tasks import Owner

logger = logging.getLogger(__name__)

TAIL_LINES = 60
# Interval of the readiness probe while the child starts, and of the health check once it is ready.
LOADING_TICK_SECONDS = 0.25
HEALTH_TICK_SECONDS = 5.0
PROBE_DEADLINE_SECONDS = 5.0
# A ready child that fails this many health checks in a row (each with a deadline) counts as hung and is killed.
HEALTH_FAILURES = 3
# The reaper kills the child after the grace period; if the reaper hangs, the daemon kills both this much later.
STOP_MARGIN_SECONDS = 5.0


class ChildPhase(Enum):
    """Phases of a child process."""

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
    """What to run, and how to tell that it is ready.

    `probe` returns whether the child is ready (later: healthy); OSError, TimeoutError and ValueError mean no.
    `on_line` gets each line of output (printable, without line end) and returns whether to probe at once.
    `stop_line` is written to the child's standard input when it has to stop (empty: SIGTERM alone). `grace_seconds`
    pass between SIGTERM and SIGKILL. A child that shows no output, processor time or memory growth for `stall_seconds`
    while it starts is killed. `log_bytes` bounds the log file, see ChildLog. `sandbox`: what it may reach (None: all
    that the daemon may).
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    probe: Callable[[], Awaitable[bool]]
    on_line: Callable[[str], bool] = lambda line: False
    stop_line: str = ""
    grace_seconds: float = 5.0
    stall_seconds: float = 120.0
    log_bytes: int = LOG_BYTES
    sandbox: Sandbox | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended: `status` as a shell gives it (128 + N for signal N), and its last lines of output.

    `requested`: after `Child.stop`. `hung`: killed because it failed its health checks or showed no progress.
    """

    status: int
    requested: bool
    hung: bool
    tail: tuple[str, ...]

    def describe(self) -> str:
        """The cause, as the predicate of a sentence about the process: "exited with status 1"."""
        if self.hung:
            return "stopped responding and was killed"
        if self.status > 128:
            number = self.status - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            return f"was killed by {name}"
        return f"exited with status {self.status}"


class Child:
    """One child process under a reaper. Await `run()` once."""

    def __init__(self, spec: ChildSpec, registry: ChildRegistry, on_ready: Callable[[int], None]) -> None:
        """`on_ready` is called once, with the process's pid, when the probe succeeds for the first time."""
        self.spec = spec
        self.phase = ChildPhase.STARTING
        self.pid = 0
        self._registry = registry
        self._on_ready = on_ready
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._wake = asyncio.Event()
        self._stop_requested = self._kill_requested = False
        self._hung = False
        self._last_progress = 0.0
        self._usage: tuple[float, int] = (0.0, 0)  # processor seconds, MiB of memory

    def stop(self, *, at_once: bool = False) -> None:
        """Request the child's end (`at_once`: with SIGKILL). Returns immediately."""
        self._stop_requested = True
        self._kill_requested = self._kill_requested or at_once
        self._wake.set()

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} pid={self.pid} {self.phase.value}>"

    async def run(self) -> Ending:
        """Start the child, watch it, and return how it ended. If cancelled, the child is killed first."""
        command = [
            sys.executable,
            "-I",
            "-S",
            child_reaper.__file__,
            str(self.spec.grace_seconds),
            self.spec.stop_line,
            *_sandboxed(self.spec),
        ]
        spawned = await start(command, environment=self.spec.environment)
        process = spawned.process
        owner = Owner(f"child {self.spec.name}")
        try:
            reading = owner.start(self._read(spawned.output), "output")
            exited = owner.start(process.wait(), "exit")
            exited.add_done_callback(lambda task: self._wake.set())
            await self._watch(process, exited)
            status = await exited
            # What the child wrote last is still in the pipe; a grandchild may keep the pipe open.
            await asyncio.wait({reading}, timeout=1.0)
            return Ending(status if status >= 0 else 128 - status, self._stop_requested, self._hung, tuple(self._tail))
        finally:
            self._kill(process)
            await process.wait()  # after SIGKILL: returns as soon as the kernel has ended it
            await owner.close()
            spawned.close_output()
            self._move(ChildPhase.GONE)

    async def _watch(self, process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
        loop = asyncio.get_running_loop()
        self._last_progress = loop.time()
        failures = 0
        while not exited.done():
            tick = HEALTH_TICK_SECONDS if self.phase is ChildPhase.READY else LOADING_TICK_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick):
                    await self._wake.wait()
            self._wake.clear()
            if exited.done():
                return
            if self._kill_requested:
                self._kill(process)
                return
            if self._stop_requested and self.phase is not ChildPhase.STOPPING:
                self._move(ChildPhase.STOPPING)
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()  # the reaper forwards it, and sends SIGKILL after the grace period
            if self.phase is ChildPhase.STOPPING:
                await asyncio.wait({exited}, timeout=self.spec.grace_seconds + STOP_MARGIN_SECONDS)
                self._kill(process)
                return
            healthy = bool(self.pid) and await self._probe()  # before its pid is known, the child may not exist
            if healthy and self.phase is ChildPhase.STARTING and not self._stop_requested:
                self._move(ChildPhase.READY)
                self._on_ready(self.pid)
            if self.phase is ChildPhase.READY:
                failures = 0 if healthy else failures + 1
                stuck = failures >= HEALTH_FAILURES
            else:
                stuck = not self._shows_progress(loop.time())
            if stuck and not exited.done():
                self._hung = True
                self._kill(process)

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_DEADLINE_SECONDS):
                return await self.spec.probe()
        except (OSError, TimeoutError, ValueError):
            return False

    def _shows_progress(self, now: float) -> bool:
        """Whether the child wrote output, used processor time or changed its memory within `stall_seconds`."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid) if self.pid else None
            if process is not None:
                times = process.cpu_times()
                usage = (round(times.user + times.system, 1), process.memory_info().rss >> 20)
                if usage != self._usage:
                    self._usage, self._last_progress = usage, now
        return now - self._last_progress < self.spec.stall_seconds

    async def _read(self, output: asyncio.StreamReader) -> None:
        """Read the output until its end: each line goes to the log, to `on_line` and to the tail."""
        splitter = LineSplitter()
        with ChildLog(self.spec.log, self.spec.log_bytes) as log:
            while data := await output.read(1 << 16):
                self._take(splitter.feed(data), log)
            self._take(splitter.finish(), log)

    def _take(self, lines: list[str], log: ChildLog) -> None:
        log.write(lines)
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if not self.pid and (pid := child_reaper.parse_pid(line)):
            self.pid = pid
            self._registry.add(self.pid, self.spec.name)
            return
        self._last_progress = asyncio.get_running_loop().time()
        if line:
            self._tail.append(line)
            try:
                if self.spec.on_line(line):
                    self._wake.set()  # probe now rather than at the next tick
            except Exception:
                logger.exception("%s: a line of its output could not be handled", self.spec.name)

    def _kill(self, process: asyncio.subprocess.Process) -> None:
        """SIGKILL the reaper and the child's process group if they still run; remove the registry entry."""
        if process.returncode is None:
            if self.pid:
                kill_group(self.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        elif process.returncode == -signal.SIGKILL and self.pid:
            kill_group(self.pid)  # the reaper was killed: the child must not outlive it
        if self.pid:
            self._registry.remove(self.pid)

    def _move(self, to: ChildPhase) -> None:
        if to not in TRANSITIONS[self.phase]:
            raise RuntimeError(f"{self!r} cannot become {to.value}")
        self.phase = to


def _sandboxed(spec: ChildSpec) -> tuple[str, ...]:
    """The sandbox, as the reaper's argument, and the command line."""
    sandbox = spec.sandbox
    if sandbox is None:
        return ("", *spec.argv)
    profile = sandbox.on and sandbox.available.profile
    return (sandbox.plan_text(), *(macos.command(sandbox.policy, spec.argv) if profile else spec.argv))
