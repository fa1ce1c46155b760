"""The mailbox loop: takes events from one queue, hands them to the core, publishes its snapshots, runs its commands.

Invariants: only this loop calls the core. Events that wait together are handled before readers see a snapshot. An
event or a command that raises is logged and counted, and the loop goes on, until a stop was asked for: then it ends
the loop, so that a daemon can always be stopped. A command that raises is answered with its failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from meshllm.core.commands import Command, Finish
from meshllm.core.events import Event, StopWanted, TimePassed
from meshllm.core.failures import failure
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import Snapshot
from meshllm.util.isolate import Isolation

# Events handled before readers get a snapshot; one costs some 0.1 ms.
MAX_BATCH: Final = 64
# A deadline whose handler raises is still due afterwards: it is tried again after this pause, not at once.
FAILED_DEADLINE_SECONDS: Final = 1.0


class NodeLoop:
    """Runs a core until it answers with `Finish`."""

    def __init__(
        self,
        core: NodeCore,
        publish: Callable[[Snapshot], None],
        mailbox: asyncio.Queue[Event] | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """`publish` gets the first snapshot and each new one. `mailbox` may hold events from before the core existed.
        `isolation` logs and counts what raises."""
        self._core = core
        self._publish = publish
        self._mailbox = mailbox if mailbox is not None else asyncio.Queue[Event]()
        self._isolation = isolation or Isolation()
        self._stopping = False
        self._not_before = float("-inf")

    def post(self, event: Event) -> None:
        """Put an event into the mailbox. Never waits."""
        self._mailbox.put_nowait(event)

    async def run(self, execute: Callable[[Command], None]) -> None:
        """Run until the core answers with `Finish`. `execute` starts a command and returns at once.

        Raises what the core or `execute` raises once a stop was asked for.
        """
        clock = asyncio.get_running_loop().time
        published: Snapshot | None = None
        commands = self._drain(clock)
        while True:
            # Readers first: a task that a command starts must find the change in the snapshot.
            snapshot = self._snapshot(published)
            if snapshot is not None and snapshot is not published:
                published = snapshot
                self._publish(snapshot)
            for command in commands:
                if isinstance(command, Finish):
                    return
                self._execute(command, execute)
            commands = self._handle(await self._next(clock), clock()) + self._drain(clock)

    def _drain(self, clock: Callable[[], float]) -> list[Command]:
        """Handle what is in the mailbox already."""
        commands: list[Command] = []
        for _ in range(min(self._mailbox.qsize(), MAX_BATCH)):
            commands += self._handle(self._mailbox.get_nowait(), clock())
        return commands

    def _handle(self, event: Event, now: float) -> list[Command]:
        self._stopping = self._stopping or isinstance(event, StopWanted)
        try:
            return self._core.handle(event, now)
        except Exception as error:
            if self._stopping:
                raise
            self._isolation.failed(f"handling {type(event).__name__}", error)
            if isinstance(event, TimePassed):
                self._not_before = now + FAILED_DEADLINE_SECONDS
            return []

    def _execute(self, command: Command, execute: Callable[[Command], None]) -> None:
        try:
            execute(command)
        except Exception as error:
            if self._stopping:
                raise
            self._isolation.failed(f"executing {type(command).__name__}", error)
            if (answer := failure(command, f"{type(command).__name__} failed: {error!r}.")) is not None:
                self.post(answer)  # the core waits for one

    def _snapshot(self, published: Snapshot | None) -> Snapshot | None:
        try:
            return self._core.snapshot()
        except Exception as error:
            if self._stopping:
                raise
            self._isolation.failed("making a snapshot", error)
            return published

    async def _next(self, clock: Callable[[], float]) -> Event:
        """The next event of the mailbox, or TimePassed at the core's next deadline."""
        deadline = self._core.next_deadline()
        if deadline is None:
            return await self._mailbox.get()
        deadline = max(deadline, self._not_before)
        try:
            # Even when the deadline has passed, the mailbox comes first: an event may change the decision.
            if not self._mailbox.empty():
                return self._mailbox.get_nowait()
            async with asyncio.timeout(max(0.0, deadline - clock())):
                return await self._mailbox.get()
        except TimeoutError:
            return TimePassed()
