"""Blackboards of a few nodes for tests: the daemon's real part and real stores, around a small core of the tests.

The core numbers entries as the real one does (one at a time, a hybrid clock) and passes them to the nodes on its side
of a partition; it verifies no signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from meshllm.board.store import EntryStore, MemoryStore
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.board.entries import EntryDraft, EntryId, EntryKind, SignedEntry
from meshllm.core.ids import NodeId
from meshllm.daemon.board import NodeBlackboard
from tests.board.board_samples import START, node, written

NAMES = {node(number): f"node{number}" for number in range(1, 10)}


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came true")


class SmallCore:
    """The core of one node, as far as the board goes."""

    def __init__(self, me: NodeId, mesh: SmallMesh) -> None:
        self.me = me
        self.mesh = mesh
        self.side = 0
        self.board: NodeBlackboard | None = None
        self.entries: dict[EntryId, SignedEntry] = {}
        self.epoch = self.seq = self.time = 0
        self.refuse = ""  # a reason to refuse all posts
        self.is_rate = False
        self.silent = False  # answers nothing
        self._drafts: deque[tuple[int, EntryDraft]] = deque()
        self._pending: tuple[int, SignedEntry] | None = None
        self._events: asyncio.Queue[e.Event] = asyncio.Queue()

    def post(self, event: e.Event) -> None:
        """Take an event; it is handled by a turn of the event loop of its own."""
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Handle events until it is cancelled."""
        while True:
            self._handle(await self._events.get())

    def _handle(self, event: e.Event) -> None:
        match event:
            case e.BoardOpened():
                self.epoch, self.seq, self.time = event.epoch, event.last_seq, event.last_time
                self.entries = {entry.id: entry for entry in event.entries}
                self._do(c.BoardChanged(event.entries))
            case e.PostWanted(number, draft):
                if self.silent:
                    return
                if self.refuse:
                    self._do(c.RefusePost(number, self.refuse, self.is_rate))
                    return
                self._drafts.append((number, draft))
                self._next()
            case e.PostSaved(number):
                assert self._pending is not None
                assert self._pending[0] == number
                entry, self._pending = self._pending[1], None
                self.seq, self.time = entry.header.seq, entry.header.time
                self.take([entry], numbers=(number,))
                self.mesh.send(self, entry)
                self._next()
            case e.PostFailed(number, reason):
                self._pending = None
                self._do(c.RefusePost(number, reason))
                self._next()

    def _next(self) -> None:
        if self._pending is None and self._drafts:
            number, draft = self._drafts.popleft()
            latest = max((entry.header.time for entry in self.entries.values()), default=0)
            time = max(int(self.mesh.now() * 1000), self.time, latest + 1)
            entry = written(self.me, self.seq + 1, time, draft, epoch=self.epoch)
            self._pending = (number, entry)
            self._do(c.SavePost(number, entry))

    def take(self, entries: list[SignedEntry], numbers: tuple[int, ...] = ()) -> None:
        """Take entries in, own ones or another node's."""
        added, erased = [], []
        gone = {entry.header.target for entry in self.entries.values() if entry.header.kind == EntryKind.RETRACT}
        for entry in entries:
            if entry.id in self.entries:
                continue
            if entry.id in gone:
                entry = replace(entry, body=None)
            self.entries[entry.id] = entry
            added.append(entry)
            if entry.header.kind == EntryKind.RETRACT and (target := self.entries.get(entry.header.target)) is not None:
                self.entries[target.id] = replace(target, body=None)
                erased.append(target.id)
                gone.add(target.id)
        if added or numbers:
            self._do(c.BoardChanged(tuple(added), tuple(erased), numbers=numbers))

    def remove(self, *ids: EntryId) -> None:
        """Entries expire."""
        for item in ids:
            del self.entries[item]
        self._do(c.BoardChanged(removed=ids))

    def tell(self, command: c.Command) -> None:
        """Give the board a command."""
        self._do(command)

    def _do(self, command: c.Command) -> None:
        assert self.board is not None
        assert self.board.carry_out(command)


class SmallMesh:
    """Nodes 1, 2, ... with a clock that tests move, besides its own running."""

    def __init__(self) -> None:
        self.offset = START / 1000
        self.cores: list[SmallCore] = []
        self._tasks: list[asyncio.Task[None]] = []

    def now(self) -> float:
        """The wall clock."""
        return self.offset + asyncio.get_running_loop().time() % 1e6

    def send(self, sender: SmallCore, entry: SignedEntry) -> None:
        """Pass a new entry to the nodes on the sender's side."""
        for core in self.cores:
            if core is not sender and core.side == sender.side:
                core.take([entry])

    def heal(self) -> None:
        """All are on one side again, and get what they lack."""
        entries = [entry for core in self.cores for entry in core.entries.values()]
        for core in self.cores:
            core.side = 0
            core.take(entries)

    async def board(
        self,
        number: int = 1,
        store: EntryStore | None = None,
        *,
        writer: str = "ann",
        names: tuple[tuple[str, str], ...] = (),
        on_change: Callable[[str], None] = lambda cursor: None,
        settle: float = 0.02,
    ) -> tuple[NodeBlackboard, SmallCore]:
        """The opened blackboard of a node, and its core."""
        core = SmallCore(node(number), self)
        board = core.board = NodeBlackboard(
            store if store is not None else MemoryStore(),
            me=core.me,
            writer=writer,
            node_name=lambda item: NAMES.get(item, item.hex()[:8]),
            names=names,
            post=core.post,
            wall_clock=self.now,
            on_change=on_change,
            settle=settle,
            erased_seconds=0.05,
        )
        self.cores.append(core)
        self._tasks.append(asyncio.get_running_loop().create_task(core.run()))
        await board.open()
        await until(lambda: board.facts().enabled)
        return board, core

    async def close(self) -> None:
        """Close all."""
        for core in self.cores:
            if core.board is not None:
                await core.board.close()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
