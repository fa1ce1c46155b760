"""Invites by members that may invite but do not hold the mesh key: such a member asks a linked one that does.

Invariants: an invite that a member asked for carries at most the rights of that member, never the right to invite or to
admit, and admits at the member that made it only, because no other knows whose quotas its users count for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from meshllm.core import events as e
from meshllm.core.membership.certificates import Right
from meshllm.core.membership.messages import AskInvite, GrantedInvite
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, short
from meshllm.daemon.audit_log import WriteAudit
from meshllm.daemon.invite_book import InviteBook, fresh_serial
from meshllm.daemon.member_rows import parse_rights, right_names
from meshllm.daemon.mesh_keys import MeshKeys, default_lifetime
from meshllm.errors import EnvironmentFailure
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.wire.mesh.invite import Invite, InviteTerms, encode, invite_key

# Validity of an invite that says nothing else, and at most of one that another member made.
INVITE_SECONDS = 86_400
MAX_ASKED_SECONDS = 7 * INVITE_SECONDS
# Flags of a request: the invite admits one node.
ONCE = 1
# Open invites that one member can have made elsewhere: they take room in the list of the maker.
MAX_OPEN_ASKED = 32
# How long the owner waits for the member that makes the invite.
ANSWER_SECONDS = 10.0
NO_MEMBER = "Run 'mesh-llm invite' on a machine that may admit others, or try again once one is on: 'mesh-llm members'."


class InviteRequests:
    """Both sides of a request for an invite."""

    def __init__(
        self,
        keys: MeshKeys,
        book: InviteBook,
        now: Callable[[], float],
        post: Callable[[e.Event], None],
        audit: WriteAudit,
    ) -> None:
        self._keys, self._book, self._now = keys, book, now
        self._post = post
        self._audit = audit
        self._waiting: asyncio.Future[tuple[NodeId, GrantedInvite]] | None = None

    # -- the member that asks

    async def ask(
        self, wish: InviteWish, mesh: MeshId, way_to: Callable[[NodeId], BootstrapAddress | None]
    ) -> Invitation:
        """An invite that another member makes; `way_to` returns where a linked node listens. Raises UsageError,
        EnvironmentFailure."""
        rights = self._wanted(wish)
        if self._waiting is not None:
            raise EnvironmentFailure("Another invite is being asked for.", advice="Try again in a few seconds.")
        lifetime = wish.days * 86_400 or default_lifetime(rights)
        expires = int(self._now() + min(wish.seconds or INVITE_SECONDS, MAX_ASKED_SECONDS))
        asked = AskInvite(rights, expires, lifetime, ONCE if wish.once else 0)
        waiting = self._waiting = asyncio.get_running_loop().create_future()
        try:
            self._post(e.InviteWanted(asked))
            async with asyncio.timeout(ANSWER_SECONDS):
                maker, granted = await waiting
        except TimeoutError:
            raise EnvironmentFailure(
                f"No invite: the asked member did not answer within {ANSWER_SECONDS:.0f} s.", advice=NO_MEMBER
            ) from None
        finally:
            self._waiting = None
        return self._show(asked, granted, mesh, way_to(maker), wish.label)

    def _wanted(self, wish: InviteWish) -> Right:
        """The rights that the invite is to carry. Raises UsageError, EnvironmentFailure."""
        may = self._keys.rights & ~(Right.INVITE | Right.ADMIT)
        rights = parse_rights(wish.rights) if wish.rights else may
        if Right.INVITE not in self._keys.rights or not may:
            raise EnvironmentFailure(
                "This node may not admit others, so it cannot make invites.",
                advice="Run 'mesh-llm invite' on one of the owner's machines: 'mesh-llm members' lists their rights.",
            )
        if rights & ~may:
            raise EnvironmentFailure(
                f"This node may not give the rights {', '.join(right_names(rights & ~may))} to others.",
                advice=f"It may give: {', '.join(right_names(may))}. A machine that may admit others gives more.",
            )
        return rights

    def _show(
        self, asked: AskInvite, granted: GrantedInvite, mesh: MeshId, way: BootstrapAddress | None, label: str
    ) -> Invitation:
        """The token of a granted invite. Raises EnvironmentFailure for a refusal, or one that is not what was asked."""
        if granted.refused:
            raise EnvironmentFailure(f"No invite: {granted.refused}.", advice=NO_MEMBER)
        if granted.rights & ~asked.rights or not granted.rights or granted.expires > asked.expires or way is None:
            raise EnvironmentFailure("No invite: the asked member gave another than was asked for.", advice=NO_MEMBER)
        once = bool(asked.flags & ONCE)
        terms = InviteTerms(granted.serial, granted.rights, granted.expires, granted.lifetime, once, maker_only=True)
        try:
            name = label[:80] or "made by another member"
            self._book.add(terms, self._keys.node, name, self._now(), self._keys.authority.key)
        except (ValueError, OSError) as error:
            raise EnvironmentFailure(f"The invite cannot be listed: {error}.") from error
        token = encode(Invite(mesh, granted.key, terms, (way,)))
        rights = tuple(right_names(granted.rights))
        return Invitation(token, granted.expires, granted.serial.hex(), rights)

    def answered(self, maker: NodeId, granted: GrantedInvite) -> None:
        """The member that was asked made an invite or refused."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((maker, granted))

    # -- the member that makes it

    def grant(self, peer: NodeId, ask: AskInvite) -> GrantedInvite:
        """An invite for `peer`, a member that may invite; `ask` has rights that it may give."""
        now = int(self._now())
        expires = min(ask.expires, now + MAX_ASKED_SECONDS)
        lifetime = min(ask.lifetime, default_lifetime(ask.rights)) or default_lifetime(ask.rights)
        if expires <= now or ask.flags & ~ONCE:
            return _refusal(ask, "it would have expired already, or has unknown flags")
        open_now = [entry for entry in self._book.invites.values() if entry.by == peer.hex() and entry.expires > now]
        if len(open_now) >= MAX_OPEN_ASKED:
            return _refusal(ask, f"{len(open_now)} invites of this node are open")
        once = bool(ask.flags & ONCE)
        terms = InviteTerms(
            fresh_serial(self._keys.node),
            ask.rights,
            expires,
            lifetime,
            once,
            maker_only=True,
        )
        try:
            self._book.add(terms, peer, f"asked for by {short(peer)}", now, self._keys.authority.key)
        except (ValueError, OSError) as error:
            return _refusal(ask, str(error)[:200])
        self._audit("invite_made", serial=terms.serial.hex(), by=peer.hex(), rights=int(terms.rights), once=once)
        key = invite_key(self._keys.private, terms, self._keys.node)
        return replace(_refusal(ask, ""), serial=terms.serial, expires=expires, lifetime=lifetime, key=key)


def _refusal(ask: AskInvite, reason: str) -> GrantedInvite:
    return GrantedInvite(b"", ask.rights, 0, 0, refused=reason)
