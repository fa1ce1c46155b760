"""The tables of clients: a node sends its table to each client, first whole, then the changes.

A client's table is the union of its providers' tables. A node keeps for each client only the changes not sent yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from meshllm.core.membership import summary
from meshllm.core.membership.messages import TableUpdate
from meshllm.core.records import NodeId, NodeRecord, RecordVersion, SignedRecord

# Nodes named as gone in one message.
MAX_GONE = 1024
# Records that a client takes from one provider: as many as a node has in its own table.
MAX_TABLE = 20_000


def _same_for_clients(one: NodeRecord, other: NodeRecord) -> bool:
    """Whether the two records differ only in what no client needs at once: version, loads, failure reports, demand."""

    def stripped(record: NodeRecord) -> NodeRecord:
        version = RecordVersion(record.version.incarnation, 0)
        return replace(record, version=version, loads=(), failure_reports=(), demand=())

    return stripped(one) == stripped(other)


class Subscribers:
    """A node's side."""

    def __init__(
        self, send: Callable[[NodeId, TableUpdate], None], routable: Callable[[NodeId], SignedRecord | None]
    ) -> None:
        """`routable` returns the record of a node that clients may send requests to, else None."""
        self._send = send
        self._routable = routable
        self._clients: dict[NodeId, set[NodeId]] = {}
        self._sent: dict[NodeId, NodeRecord] = {}  # the last record of each node that clients were sent

    def add(self, client: NodeId, nodes: Iterable[NodeId]) -> None:
        """Send `client` the whole table of `nodes`, and from now on its changes."""
        self.flush()
        table = [signed for node in nodes if (signed := self._routable(node)) is not None]
        self._sent = {signed.record.node: signed.record for signed in table}
        self._clients[client] = set()
        portions = list(summary.chunks(table)) or [()]
        for number, portion in enumerate(portions):
            self._send(client, TableUpdate(portion, first=number == 0, more=number + 1 < len(portions)))

    def drop(self, client: NodeId) -> None:
        """`client` is not linked any more."""
        self._clients.pop(client, None)

    def changed(self, node: NodeId) -> bool:
        """`node` changed. Returns whether there is an update to send."""
        if not self._clients:
            return False
        signed, sent = self._routable(node), self._sent.get(node)
        if signed is None if sent is None else signed is not None and _same_for_clients(sent, signed.record):
            return False
        if signed is None:
            self._sent.pop(node, None)
        else:
            self._sent[node] = signed.record
        for waiting in self._clients.values():
            waiting.add(node)
        return True

    def flush(self) -> None:
        """Send all clients the changes."""
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
                self._send(client, TableUpdate((), gone=tuple(gone[first : first + MAX_GONE])))
            for portion in summary.chunks(new):
                self._send(client, TableUpdate(portion))

    def farewell(self, own: NodeId) -> None:
        """This node leaves: clients must not send requests to it."""
        for client in self._clients:
            self._send(client, TableUpdate((), gone=(own,)))


class Providers:
    """A client's side: the table of each provider, and the union of them."""

    def __init__(self) -> None:
        self._tables: dict[NodeId, dict[NodeId, SignedRecord]] = {}
        # While a provider sends its whole table: the nodes that it has sent so far.
        self._arriving: dict[NodeId, set[NodeId]] = {}
        # The last provider's table, until there is another provider: better than an empty one.
        self._last: dict[NodeId, SignedRecord] = {}

    def update(self, provider: NodeId, update: TableUpdate) -> set[NodeId]:
        """Take in an update; returns the nodes that it concerns.

        A whole table comes in portions. Until the last one, records are only added and replaced: what the new table
        lacks is removed at its end.
        """
        table = self._tables.setdefault(provider, {})
        touched = {signed.record.node for signed in update.records} | set(update.gone)
        if update.first:
            self._arriving[provider] = set()
        arriving = self._arriving.get(provider)
        for node in update.gone:
            table.pop(node, None)
        for signed in update.records:
            node = signed.record.node
            held = table.get(node)
            if len(table) < MAX_TABLE or held is not None:
                table[node] = signed if held is None or held.record.version < signed.record.version else held
                if arriving is not None:
                    arriving.add(node)
        if update.more:
            return touched
        if arriving is not None:
            del self._arriving[provider]
            for node in table.keys() - arriving:
                del table[node]
                touched.add(node)
        touched |= self._last.keys()
        self._last = {}
        return touched

    def lost(self, provider: NodeId) -> set[NodeId]:
        """The link to `provider` is gone: forget its table, unless it is the only one. Returns the nodes concerned."""
        table = self._tables.pop(provider, {})
        self._arriving.pop(provider, None)
        if not self._tables:
            self._last = {**self._last, **table}
            self._last.pop(provider, None)
        return {*table, provider}

    def forget(self, node: NodeId) -> bool:
        """A node of the last table does not answer. Returns whether it was in there."""
        return self._last.pop(node, None) is not None

    def best(self, node: NodeId) -> SignedRecord | None:
        """The newest record of `node` in any table, or None."""
        found = [table[node] for table in self._tables.values() if node in table]
        if not found and node in self._last:
            return self._last[node]
        return max(found, key=lambda signed: signed.record.version, default=None)
