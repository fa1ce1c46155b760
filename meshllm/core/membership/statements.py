"""How statements of the mesh key spread: at once to all links, and by comparing hashes where one was missed.

Invariants: a statement is forwarded only by a node to which it was new. The whole set goes to a peer at most once in
`WHOLE_SET_SECONDS`, and only if the hashes differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshllm.core import commands as c
from meshllm.core.ids import NodeId
from meshllm.core.membership.authority import Authority, portions
from meshllm.core.membership.certificates import SignedStatement
from meshllm.core.membership.links import LinkState, LinkTable
from meshllm.core.membership.messages import MAX_STATEMENTS_SENT, Message, Statements

# The time between two whole sets to one peer.
WHOLE_SET_SECONDS = 5.0
# Tokens of a link's allowance that a message costs, and each statement in it that is not known.
MESSAGE_PRICE, STATEMENT_PRICE = 1.0, 1.0


class StatementExchange:
    """The exchanges of one participant with its peers."""

    def __init__(
        self,
        authority: Authority,
        links: LinkTable,
        send: Callable[[NodeId, Message], None],
        out: list[c.Command],
    ) -> None:
        """`SaveStatements` is appended to `out`."""
        self._authority = authority
        self._links = links
        self._send = send
        self._out = out

    def greet(self, peer: NodeId) -> None:
        """A link came up: tell the peer the hash of the set."""
        self._send(peer, Statements((), self._authority.hash))

    def received(self, peer: NodeId, link: LinkState, message: Statements, now: float) -> list[SignedStatement]:
        """Take in what a peer sent; returns what is new. It has been forwarded."""
        unknown = [data for data in message.statements if not self._authority.knows(data)]
        if not link.allowance.take(now, MESSAGE_PRICE + STATEMENT_PRICE * len(unknown)):
            return []
        new = self.learn(unknown, but=peer)
        self.compare(peer, link, message.hash, now)
        return new

    def learn(self, statements: Iterable[bytes], *, but: NodeId | None = None) -> list[SignedStatement]:
        """Take in statements, save them and forward those that are new to every linked peer except `but`."""
        new = [signed for data in statements if (signed := self._authority.learn(data)) is not None]
        if new:
            known = tuple([signed.data for signed in self._authority.statements])
            self._out.append(c.SaveStatements(self._authority.key, known, self._authority.previous))
            for peer, _ in self._links.items():
                if peer != but:
                    self._give(peer, tuple(new))
        return new

    def compare(self, peer: NodeId, link: LinkState, known: bytes, now: float) -> None:
        """A peer told the hash of its set: send it this node's if they differ."""
        if not known or known == self._authority.hash or now - link.statements_sent < WHOLE_SET_SECONDS:
            return
        link.statements_sent = now
        self._give(peer, self._authority.statements)

    def _give(self, peer: NodeId, statements: tuple[SignedStatement, ...]) -> None:
        for portion in list(portions(statements, MAX_STATEMENTS_SENT)) or [()]:
            self._send(peer, Statements(portion, self._authority.hash))
