"""How clients know the mesh: nodes tell them their table, first whole, then what changes.

Law: a client has no table of its own making. A node is in it while one of the nodes that it is linked to says so, and
what that node says replaces what it said before. Nodes keep for each client only what is to be told next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from meshllm.core.membership import summary
from meshllm.core.membership.messages import TableUpdate
from meshllm.core.records import NodeId, NodeRecord, RecordVersion, SignedRecord

# Nodes named as gone in one message; far more than can go at once in a mesh that lives.
MAX_GONE = 1024
# Records a client takes from one provider: as many as a node itself would.
MAX_TABLE = 20_000

_BLANK = RecordVersion(0, 0)


def _told_alike(one: NodeRecord, other: NodeRecord) -> bool:
    """Whether the two say the same to a client: a heartbeat is no news to it, nor is who complains."""

    def bare(record: NodeRecord) -> NodeRecord:
        stamp = RecordVersion(record.version.incarnation, 0)
        return replace(record, version=stamp, loads=(), failure_reports=())

    return bare(one) == bare(other)


class Subscribers:
    """A node's side."""

    def __init__(
        self, tell: Callable[[NodeId, TableUpdate], None], routable: Callable[[NodeId], SignedRecord | None]
    ) -> None:
        """`routable` gives the record of a node that clients may ask, else None."""
        self._tell = tell
        self._routable = routable
        self._clients: dict[NodeId, set[NodeId]] = {}
        self._told: dict[NodeId, NodeRecord] = {}  # what they were last told of a node

    def add(self, client: NodeId, nodes: Iterable[NodeId]) -> None:
        """Tell `client` the table of `nodes` whole, and from now on what changes."""
        self.flush()
        table = [signed for node in nodes if (signed := self._routable(node)) is not None]
        self._told = {signed.record.node: signed.record for signed in table}
        self._clients[client] = set()
        portions = list(summary.chunks(table)) or [()]
        for number, portion in enumerate(portions):
            self._tell(client, TableUpdate(portion, first=number == 0, more=number + 1 < len(portions)))

    def drop(self, client: NodeId) -> None:
        """It is no longer linked."""
        self._clients.pop(client, None)

    def changed(self, node: NodeId) -> bool:
        """`node` is not what it was. True if anybody is to be told."""
        if not self._clients:
            return False
        signed, told = self._routable(node), self._told.get(node)
        if signed is None if told is None else signed is not None and _told_alike(told, signed.record):
            return False
        if signed is None:
            self._told.pop(node, None)
        else:
            self._told[node] = signed.record
        for waiting in self._clients.values():
            waiting.add(node)
        return True

    def flush(self) -> None:
        """Tell everybody what has changed."""
        for client, waiting in self._clients.items():
            if not waiting:
                continue
            new, gone = [], []
            for node in sorted(waiting):
                signed = self._routable(node)
                if signed is None:
                    gone.append(node)
                else:
                    new.append(signed)
            waiting.clear()
            for first in range(0, len(gone), MAX_GONE):
                self._tell(client, TableUpdate((), gone=tuple(gone[first : first + MAX_GONE])))
            for portion in summary.chunks(new):
                self._tell(client, TableUpdate(portion))

    def farewell(self, own: NodeId) -> None:
        """This node leaves: nobody is to ask it any more."""
        for client in self._clients:
            self._tell(client, TableUpdate((), gone=(own,)))


class Providers:
    """A client's side: what each linked node said, and the union of it."""

    def __init__(self) -> None:
        self._said: dict[NodeId, dict[NodeId, SignedRecord]] = {}
        # What the last provider said, while there is none: better than to know nobody.
        self._last: dict[NodeId, SignedRecord] = {}

    def told(self, provider: NodeId, table: TableUpdate) -> set[NodeId]:
        """Take in what a linked node said; the nodes it speaks of."""
        said = self._said.setdefault(provider, {})
        touched = {signed.record.node for signed in table.records} | set(table.gone)
        if table.first:
            touched |= said.keys() | self._last.keys()
            said.clear()
        for node in table.gone:
            said.pop(node, None)
        for signed in table.records:
            node = signed.record.node
            held = said.get(node)
            if len(said) < MAX_TABLE or held is not None:
                said[node] = signed if held is None or held.record.version < signed.record.version else held
        if not table.more:
            self._last = {}
        return touched

    def lost(self, provider: NodeId) -> set[NodeId]:
        """The link to `provider` is gone: what only it said is no longer known, unless nobody is left to ask."""
        said = self._said.pop(provider, {})
        if not self._said:
            self._last = {**self._last, **said}
            self._last.pop(provider, None)
        return {*said, provider}

    def best(self, node: NodeId) -> SignedRecord | None:
        """The newest record of `node` that anybody tells, None if nobody does."""
        found = [said[node] for said in self._said.values() if node in said]
        if not found and node in self._last:
            return self._last[node]
        return max(found, key=lambda signed: signed.record.version, default=None)

    def nodes(self) -> set[NodeId]:
        """Everybody that is known."""
        return set().union(self._last, *self._said.values())

    @property
    def count(self) -> int:
        """How many nodes tell this client their table."""
        return len(self._said)
