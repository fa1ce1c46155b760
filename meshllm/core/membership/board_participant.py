"""The blackboard as a part of a node or client: its events, messages and timer, and who shares it.

The members of a mesh share it that are more than guests; without a mesh key every node does.
"""

from __future__ import annotations

from collections.abc import Callable

from meshllm.core import events as e
from meshllm.core.board.messages import BoardMessage
from meshllm.core.board.replica import BoardReplica
from meshllm.core.ids import MeshId, NodeId
from meshllm.core.membership import messages as m
from meshllm.core.membership.authority import Authority, rights_of
from meshllm.core.membership.certificates import NODE_RIGHTS, Right, SignedStatement
from meshllm.core.membership.links import LinkState, Rng
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.membership.participant import MeshParticipant
from meshllm.core.membership.timers import Timer
from meshllm.core.records import Role


class BoardMembership:
    """`core.board.replica.BoardMembers` by the certificates of a mesh."""

    def __init__(
        self, authority: Authority | None, rights: Callable[[NodeId], Right], certificate: Callable[[], bytes]
    ) -> None:
        """`rights` of a linked or known node, this one included; `certificate`: this node's."""
        self._authority = authority
        self._rights = rights
        self._certificate = certificate

    def may_share(self, node: NodeId, certificate: bytes, unix: float) -> bool:
        """Whether a peer or author may read and write, by its certificate (empty: by what is known of it)."""
        if self._authority is None:
            return True
        rights = self._rights(node)
        if not rights and certificate:
            rights = rights_of(self._authority.certificate(certificate, node, unix), self._authority)
        return bool(rights & NODE_RIGHTS)

    def holder(self, certificate: bytes, unix: float) -> NodeId | None:
        """Whose certificate that is, if it counts."""
        return None if self._authority is None else self._authority.holder(certificate, unix)

    def own_certificate(self) -> bytes:
        """This node's, empty without a mesh key."""
        return self._certificate()


class BoardParticipant(MeshParticipant):
    """A participant with a copy of the blackboard (`MeshConfig.sign_entry`), or without."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        super().__init__(config, rng)
        members = BoardMembership(
            self._authority,
            lambda node: self._rights if node == self._id else self.rights_of(node),
            lambda: self._certificate,
        )
        self._board = BoardReplica(
            config.sign_entry, config.node, lambda: self._mesh, members, self._links, self._timers, self._out
        )

    def _dispatch(self, event: e.Event, now: float) -> None:
        if isinstance(event, e.BoardOpened | e.ClockRead | e.PostWanted | e.PostSaved | e.PostFailed):
            self._board.handle(event, now)
        else:
            super()._dispatch(event, now)

    def _message(self, peer: NodeId, message: m.Message, now: float) -> None:
        if isinstance(message, BoardMessage):
            if self._authority is None or not self._authority.is_expelled(peer):
                self._board.message(peer, message, now)
        else:
            super()._message(peer, message, now)

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        super()._pong(peer, link, message, now)
        self._board.hash_seen(peer, message.board, now)

    def _board_hash(self, link: LinkState) -> bytes:
        # Nodes compare in their rounds of anti-entropy; a client takes part in none.
        return self._board.hash if link.role is Role.CLIENT else b""

    def _link_down(self, peer: NodeId, now: float) -> None:
        self._board.link_down(peer)
        super()._link_down(peer, now)

    def _due(self, timer: Timer, node: NodeId, now: float, late: float) -> None:
        if timer is Timer.BOARD:
            self._board.expire(now)
        else:
            super()._due(timer, node, now, late)

    def _apply(self, new: list[SignedStatement], now: float) -> None:
        super()._apply(new, now)
        if new and not self._left:
            self._board.members_changed(now)

    def _consider_mesh(self, peer: NodeId, mesh: MeshId) -> None:
        before = self._mesh
        super()._consider_mesh(peer, mesh)
        if self._mesh != before:
            self._board.mesh_changed(self._now)
