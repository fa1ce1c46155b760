"""The mailbox loop: the only owner of the core.

Law: everything that happens becomes an event in one queue; one loop hands it to the core, carries out the commands that
come back and publishes the new snapshot. Nobody else touches the core. What has happened already is taken in together:
readers never see a state between two things that were known at the same time, and a burst costs one snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshllm.core.commands import Command, Finish
from meshllm.core.events import Event, TimePassed
from meshllm.core.node import NodeCore
from meshllm.core.snapshot import Snapshot

# Events taken in before readers are told; they cost some 0.1 ms each.
MOST_AT_ONCE = 64


class NodeLoop:
    """Runs a core until it says that it is finished."""

    def __init__(
        self, mesh: NodeCore, publish: Callable[[Snapshot], None], mailbox: asyncio.Queue[Event] | None = None
    ) -> None:
        """`publish` hears the first snapshot and each new one. `mailbox` may hold what happened before the core was."""
        self._mesh = mesh
        self._publish = publish
        self._mailbox = mailbox if mailbox is not None else asyncio.Queue[Event]()

    def post(self, event: Event) -> None:
        """Something happened. Never waits."""
        self._mailbox.put_nowait(event)

    async def run(self, carry_out: Callable[[Command], None]) -> None:
        """Until the core asks to finish. `carry_out` starts what a command asks for and returns at once."""
        clock = asyncio.get_running_loop().time
        published: Snapshot | None = None
        commands = self._take_in(clock)
        while True:
            # Readers first: whoever is told of the change by a command must find it in the snapshot.
            if (snapshot := self._mesh.snapshot()) is not published:
                published = snapshot
                self._publish(snapshot)
            for command in commands:
                if isinstance(command, Finish):
                    return
                carry_out(command)
            commands = self._mesh.handle(await self._next(clock), clock()) + self._take_in(clock)

    def _take_in(self, clock: Callable[[], float]) -> list[Command]:
        """What is in the mailbox already."""
        commands: list[Command] = []
        for _ in range(min(self._mailbox.qsize(), MOST_AT_ONCE)):
            commands += self._mesh.handle(self._mailbox.get_nowait(), clock())
        return commands

    async def _next(self, clock: Callable[[], float]) -> Event:
        deadline = self._mesh.next_deadline()
        if deadline is None:
            return await self._mailbox.get()
        try:
            # Even when the deadline has passed, what is in the mailbox comes first: it may change the decision.
            if not self._mailbox.empty():
                return self._mailbox.get_nowait()
            return await asyncio.wait_for(self._mailbox.get(), timeout=max(0.0, deadline - clock()))
        except TimeoutError:
            return TimePassed()
