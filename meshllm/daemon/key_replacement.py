"""`mesh-llm rotate-key`: this node gets a new key, so a new id, and stays the member that it is.

Invariants: the new key is on the disk before any other node knows of it. Once the mesh has the statement that the new
id replaces the old one, the old certificate counts for the new id at all members, so that a crash at any point leaves
a member: under the old id before the statement, under the new one after it, to which `newest` then switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.authority import REPLACED_RECENTLY, Authority
from meshllm.core.membership.certificates import NO_INVITE, NO_RIGHTS, Right, is_owner
from meshllm.core.membership.messages import ReplaceKey, ReplaceRefused
from meshllm.core.records import NodeId, short
from meshllm.daemon.invite_book import InviteBook
from meshllm.daemon.mesh_keys import MeshKeys, new_authority
from meshllm.daemon.mesh_state import MeshState
from meshllm.errors import EnvironmentFailure, unusable_file
from meshllm.net.identity import Identity, verify
from meshllm.util.threads import in_thread
from meshllm.wire.mesh.certificates import replacement_to_sign

log = logging.getLogger(__name__)

# How long the owner waits for the member that signs.
ANSWER_SECONDS = 15.0
# Guests that came by one invite and replace their keys within `REPLACED_RECENTLY`: each is a statement that is kept,
# and one invite can make 32 nodes.
MAX_REPLACED_OF_INVITE = 8
# The time between the end of the old id and the stop of the node: the owner gets the answer, the peers the statement.
LAST_WORD_SECONDS = 0.5


def newest(identity: Identity, home: Path, state: MeshState) -> Identity:
    """The node's key, or the next one if the mesh knows that as the successor; it then becomes the node's. Blocks.
    Raises DamagedState, OSError."""
    following = Identity.load_next(home)
    if following is None or saved_authority(state).successor(identity.node) != following.node:
        return identity
    log.warning("this node has a new key: %s instead of %s", short(following.node), short(identity.node))
    return Identity.take_next(home)


def saved_authority(state: MeshState) -> Authority:
    """What the state file says of the mesh."""
    return new_authority(state.key, state.statements, state.previous)


class KeyReplacement:
    """The replacement of this node's key, and of those of members that ask this node."""

    def __init__(
        self,
        home: Path,
        identity: Identity,
        keys: MeshKeys,
        state: MeshState,
        now: Callable[[], float],
        save: Callable[[Callable[[], None]], None],
        post: Callable[[e.Event], None],
        restart: Callable[[], None],
        book: InviteBook,
    ) -> None:
        """`save` runs a function that writes to the disk; `restart` stops this node and starts it again."""
        self._home, self._identity, self._keys, self._state = home, identity, keys, state
        self._now = now
        self._save = save
        self._post = post
        self._restart = restart
        self._book = book
        self._waiting: asyncio.Future[NodeId] | None = None

    # -- of this node

    async def replace(self) -> NodeId:
        """Give this node a new key; returns its new id, under which it starts again. Raises EnvironmentFailure."""
        if self._waiting is not None:
            raise EnvironmentFailure("The key of this node is being replaced already.")
        waiting = self._waiting = asyncio.get_running_loop().create_future()
        try:
            return await self._replace(waiting)
        finally:
            self._waiting = None

    async def _replace(self, waiting: asyncio.Future[NodeId]) -> NodeId:
        try:
            following = await in_thread(lambda stop: Identity.load_next(self._home, create=True), "create the key")
        except OSError as error:
            raise unusable_file(error) from error
        assert following is not None
        keys = self._keys
        owned = is_owner(keys.rights)
        why = keys.authority.may_replace(keys.node, following.node, self._now(), owned=owned)
        if why:
            raise _failed(why)
        if keys.may_admit:
            await self._sign_own(following)
        else:
            over = replacement_to_sign(keys.authority.key, keys.node, following.node)
            request = ReplaceKey(following.node, self._identity.sign(over), following.sign(over))
            self._post(e.ReplacementWanted(request))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await waiting
        except TimeoutError:
            raise EnvironmentFailure(
                f"The key of this node is not replaced: no answer within {ANSWER_SECONDS:.0f} s.",
                advice="If the asked member carries it out later, this node changes its key then. Else run it again.",
            ) from None

    async def _sign_own(self, following: Identity) -> None:
        """A node with the mesh key signs for itself. What it needs under its new id is on the disk before the mesh
        gets the statement."""
        keys = self._keys
        own = keys.certificate_as(following.node)
        if own.inviter == keys.node:  # a founder
            own = replace(own, inviter=following.node)
        statement = keys.replace(keys.node, following.node)
        certificate = keys.renewed(own)
        loop = asyncio.get_running_loop()
        saved: asyncio.Future[EnvironmentFailure | None] = loop.create_future()

        def write() -> None:
            failed = None
            try:
                self._state.save_replacement(certificate.data, statement)
            except EnvironmentFailure as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, saved, failed)

        self._save(write)
        failed = await saved
        if failed is not None:
            raise failed
        self._post(e.StatementsMade((statement,)))

    def refused(self, reason: str) -> None:
        """The member that was asked does not replace the key."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_failed(reason))

    def left(self, successor: NodeId) -> None:
        """The mesh knows this node as `successor` from now on: start again with that key."""
        loop = asyncio.get_running_loop()

        def check() -> None:
            # Only with the statement on the disk does the next start use the new key.
            following = Identity.load_next(self._home)
            saved = saved_authority(self._state).successor(self._identity.node)
            if following is None or not following.node == successor == saved:
                log.error("the mesh replaced this node's key by one that is not here: this node is no member any more")
                return
            loop.call_soon_threadsafe(self._end, successor)

        self._save(check)

    def _end(self, successor: NodeId) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(successor)
        asyncio.get_running_loop().call_later(LAST_WORD_SECONDS, self._restart)

    # -- of others

    def certify(self, command: c.CertifyReplacement, rights: Right) -> ReplaceRefused | None:
        """A member with `rights` asks for a new id: post the statement, or return the refusal."""
        keys, peer, request = self._keys, command.peer, command.request
        over = replacement_to_sign(keys.authority.key, peer, request.successor)
        if not keys.may_admit or rights == NO_RIGHTS:
            return ReplaceRefused("the asked member may not admit others")
        if not (verify(peer, over, request.old_signature) and verify(request.successor, over, request.new_signature)):
            return ReplaceRefused("one of the signatures is wrong")
        why = keys.authority.may_replace(peer, request.successor, self._now(), owned=is_owner(rights))
        if not why and not is_owner(rights) and self._replaced_of_invite(peer) >= MAX_REPLACED_OF_INVITE:
            why = f"{MAX_REPLACED_OF_INVITE} nodes of its invite replaced their keys in the last 30 days"
        if why:
            return ReplaceRefused(why)
        self._post(e.StatementsMade((keys.replace(peer, request.successor),)))
        return None

    def _replaced_of_invite(self, peer: NodeId) -> int:
        """How many nodes that came by the invite of `peer` have replaced their keys lately."""
        known = self._book.known_as(peer)
        if known is None or known.invite == NO_INVITE:
            return 0
        replaced = self._keys.authority.replaced_since(self._now() - REPLACED_RECENTLY)
        same = [found.invite == known.invite for node in replaced if (found := self._book.known_as(node)) is not None]
        return sum(same)


def _failed(why: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"The key of this node is not replaced: {why}. Nothing has changed.",
        advice="'mesh-llm members' lists the members with the right to admit: one of them must be on.",
    )


def _settle(saved: asyncio.Future[EnvironmentFailure | None], failed: EnvironmentFailure | None) -> None:
    """Unless the node stops meanwhile."""
    if not saved.done():
        saved.set_result(failed)
