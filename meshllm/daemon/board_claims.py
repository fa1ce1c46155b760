"""Acquires, renews and releases claims for writers of this node. Claims are soft: an agreement, not a lock.

A claim is posted, then one settle of time passes for what other nodes say at the same moment, then the fold of all
entries decides. A writer that lost releases its claim at once, so that it does not stand in line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from meshllm.board.drafts import DraftMaker
from meshllm.board.index import NodeName, shown_line, shown_name
from meshllm.core.board.claims import BoardClaim, ClaimFold
from meshllm.core.board.entries import EntryDraft, EntryId, EntryKind, SignedEntry
from meshllm.core.board.service import ALL_ROOMS, ClaimAnswer, ClaimFacts, ClaimWish
from meshllm.core.ids import NodeId
from meshllm.daemon.board_shield import shielded
from meshllm.errors import BoardRate, BoardRefused
from meshllm.tasks import Owner

log = logging.getLogger(__name__)

# How long a claim waits for those of other nodes.
SETTLE_SECONDS: Final = 2.0

PostDraft = Callable[[EntryDraft], Awaitable[SignedEntry]]


class ClaimKeeper:
    """Answers the wishes of this node's writers. Used on the event loop."""

    def __init__(
        self,
        fold: ClaimFold,
        drafts: DraftMaker,
        post: PostDraft,
        *,
        me: NodeId,
        node_name: NodeName,
        wall_clock: Callable[[], float],
        settle: float = SETTLE_SECONDS,
    ) -> None:
        """`post` posts a draft and returns its entry once the core has it; `wall_clock`: unix seconds."""
        self._fold = fold
        self._drafts = drafts
        self._post = post
        self._me = me
        self._node_name = node_name
        self._wall_clock = wall_clock
        self._settle = settle
        self._owner = Owner("board claims", awaited=True)
        # When claims that were posted here have settled, in the event loop's time.
        self._settled_at: dict[EntryId, float] = {}

    async def close(self) -> None:
        """End what waits."""
        await self._owner.close()

    def list(self, room: str) -> tuple[ClaimFacts, ...]:
        """The claims that hold now, the next to end first."""
        room = self._drafts.room(room)
        return tuple(
            self._facts(claim)
            for claim in self._fold.holders(self._now())
            if room in (ALL_ROOMS, shown_line(claim.header.room))
        )

    async def answer(self, wish: ClaimWish) -> ClaimAnswer:
        """Do what is wished; waits for the settle at most, and for the disk. Raises BoardRefused.

        A caller that goes away does not stop it: a claim that was lost is still released.
        """
        draft, replaced = self._drafts.claim(wish)
        work = {"acquire": self._acquire, "renew": self._renew, "release": self._release}[wish.op]
        granted = await shielded(self._owner.start(work(draft), wish.op))
        holder = self._holder(draft)
        return ClaimAnswer(granted, None if holder is None else self._facts(holder), replaced)

    async def _acquire(self, draft: EntryDraft) -> bool:
        holder = self._holder(draft)
        if holder is not None and not self._is_of(holder, draft):
            return False
        if holder is not None:
            await self._wait(holder.id)
            if await self._renew(draft):
                return True
        entry = await self._post(draft)
        loop = asyncio.get_running_loop()
        self._settled_at[entry.id] = loop.time() + self._settle
        try:
            await self._wait(entry.id)
        finally:
            del self._settled_at[entry.id]
        holder = self._holder(draft)
        if holder is not None and self._is_of(holder, draft):
            return True
        try:
            await self._post(_about(draft, EntryKind.RELEASE, entry.id))
        except (BoardRefused, BoardRate) as error:
            log.warning("a claim that was lost ends by itself only: %s", error.message)
        return False

    async def _renew(self, draft: EntryDraft) -> bool:
        holder = self._holder(draft)
        if holder is None or not self._is_of(holder, draft):
            return False
        await self._post(_about(draft, EntryKind.RENEW, holder.id, draft.seconds))
        holder = self._holder(draft)
        return holder is not None and self._is_of(holder, draft)

    async def _release(self, draft: EntryDraft) -> bool:
        """Release all claims of the writer; a person may release those of programs on the node."""
        live = self._fold.live(draft.room, draft.subject, self._now())
        own = [claim for claim in live if self._is_of(claim, draft) or (not draft.program and self._is_mine(claim))]
        for claim in own:
            await self._post(_about(draft, EntryKind.RELEASE, claim.id))
        return bool(own)

    async def _wait(self, claim: EntryId) -> None:
        """Wait until a claim that was posted here has settled."""
        loop = asyncio.get_running_loop()
        wait = self._settled_at.get(claim, 0.0) - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)

    def _holder(self, draft: EntryDraft) -> BoardClaim | None:
        return self._fold.holder(draft.room, draft.subject, self._now())

    def _is_mine(self, claim: BoardClaim) -> bool:
        return claim.header.author == self._me

    def _is_of(self, claim: BoardClaim, draft: EntryDraft) -> bool:
        header = claim.header
        return self._is_mine(claim) and (header.name, header.program) == (draft.name, draft.program)

    def _now(self) -> int:
        return int(self._wall_clock() * 1000)

    def _facts(self, claim: BoardClaim) -> ClaimFacts:
        header = claim.header
        return ClaimFacts(
            key=shown_line(header.subject),
            room=shown_line(header.room),
            name=shown_name(header.name),
            program=shown_name(header.program),
            node=shown_line(self._node_name(header.author)),
            author=header.author.hex(),
            since=claim.since / 1000,
            until=claim.until / 1000,
            mine=self._is_mine(claim),
            id=claim.id.hex(),
        )


def _about(draft: EntryDraft, kind: EntryKind, target: EntryId, seconds: int = 0) -> EntryDraft:
    """The draft of an entry about a claim of the same writer."""
    return EntryDraft(
        "", kind, draft.room, draft.name, draft.program, subject=draft.subject, seconds=seconds, target=target
    )
