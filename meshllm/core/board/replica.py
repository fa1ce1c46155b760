"""This node's copy of the blackboard, and its exchange with the peers.

A new entry is pushed to the linked peers, each of which passes it on if it did not have it. What a push misses is found
by anti-entropy: the digest of records that nodes send anyway carries a hash of the board (8 bytes), and where it
differs the two compare their chains and each asks for what it lacks. Only the one that lacks an entry asks for it, and
from one peer at a time, so that nothing is sent twice. An idle board costs no message.

Own entries count once they are saved: a crash can neither lose an acknowledged one nor use its number again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Protocol

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.board import entries as b
from meshllm.core.board.board_peer import ANSWER_BYTES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, BoardPeer
from meshllm.core.board.chain import Chain, ChainId, chain_of
from meshllm.core.board.entries import (
    EntryDraft,
    EntryHeader,
    EntryId,
    EntryKind,
    SignedEntry,
    SignEntry,
    body_hash,
    entry_id,
)
from meshllm.core.board.log import AddResult, BoardLog
from meshllm.core.board.messages import (
    MAX_CHAINS_LISTED,
    MAX_ENTRIES_BYTES,
    MAX_ENTRIES_SENT,
    MAX_RANGES,
    BoardDifference,
    BoardDigest,
    BoardEntries,
    BoardMessage,
    BoardWant,
    ChainRange,
    ChainState,
)
from meshllm.core.ids import MeshId, NodeId
from meshllm.core.membership.links import LinkTable
from meshllm.core.membership.messages import Digest, Message
from meshllm.core.membership.timers import Timer, Timers
from meshllm.util.rate_limiter import TokenBucket

# Up to so many chains a node lists all of them at once, without the step of comparing buckets.
FEW_CHAINS = 200
# What one peer may ask for in all.
BYTES_PER_SECOND, BYTES_AT_ONCE = 512 << 10, 4 << 20
# How long an asked peer has to send, before another one is asked.
ANSWER_SECONDS = 5.0
# Peers that are asked for a gap in a chain before it is given up: one could hide entries, several hardly do.
MAX_TRIED = 4
NOT_OPEN = "The blackboard is not open yet."
# The only refusal that no later attempt changes.
NOT_OWN = "Only a message of this node can be retracted, within 48 hours."
# Chains remembered that a peer lists and this node lacks.
MAX_TARGETS = 2 * MAX_CHAINS_LISTED
# New entries of one author that this node passes on at once; what is above it spreads by anti-entropy, once to each
# node.
PUSHES_PER_SECOND, PUSHES_AT_ONCE = 2 * b.ENTRIES_PER_MINUTE / 60, 2 * b.ENTRIES_AT_ONCE
MAX_PUSHING_AUTHORS = 4096
# Of a chain's state in a message, by which answers are charged.
STATE_BYTES = 57
# Own posts that wait to be saved.
MAX_PENDING = 64
# Expiry is looked at this often at least: the wall clock can be set.
LONGEST_WAIT_SECONDS = 60.0
# Tokens of a link's allowance that messages cost.
COMPARE_PRICE = 5.0
ENTRIES_PRICE, CERTIFICATE_PRICE = 0.2, 0.1
WANT_PRICE = 2.0


class BoardMembers(Protocol):
    """Who shares the board. Times in unix seconds."""

    def may_share(self, node: NodeId, certificate: bytes, unix: float) -> bool:
        """Whether a peer or author may read and write, by its certificate (empty: by what is known of it)."""

    def holder(self, certificate: bytes, unix: float) -> NodeId | None:
        """Whose certificate that is, if it counts."""

    def own_certificate(self) -> bytes:
        """This node's, empty without a mesh key."""


class BoardReplica:
    """The blackboard in a node or client. `closed` until `BoardOpened`."""

    def __init__(
        self,
        sign: SignEntry | None,
        node: NodeId,
        mesh: Callable[[], MeshId],
        members: BoardMembers,
        links: LinkTable,
        timers: Timers,
        out: list[c.Command],
    ) -> None:
        """`sign` None: this node has no blackboard. `mesh` returns the mesh's id as it is now. Commands are appended to
        `out`."""
        self._sign = sign
        self._node = node
        self._mesh = mesh
        self._members = members
        self._links = links
        self._timers = timers
        self._out = out
        self.log = BoardLog()
        self._peers: dict[NodeId, BoardPeer] = {}
        self._certificates: dict[NodeId, bytes] = {}
        self._known: set[bytes] = set()  # the certificates of authors
        self._new_certificates: dict[NodeId, bytes] = {}
        self._open = False
        self._epoch = self._last_seq = self._last_time = 0
        self._unix_offset = 0.0  # of the wall clock to the event times
        self._drafts: deque[tuple[int, EntryDraft]] = deque()
        self._pending: tuple[int, SignedEntry] | None = None
        self._pushes: dict[NodeId, TokenBucket] = {}
        self._ahead: dict[EntryId, int] = {}  # entries that wait, and their times
        self._facts: tuple[int, tuple[NodeId, ...]] = (0, ())

    @property
    def hash(self) -> bytes:
        """What the digest of records says of the board; empty while it is closed."""
        return self.log.hash if self._open else b""

    def _unix(self, now: float) -> float:
        return now + self._unix_offset

    def _ms(self, now: float) -> int:
        return int(self._unix(now) * 1000)

    # -- events of the daemon

    def handle(self, event: e.Event, now: float) -> None:
        """Take in an event; others than those of the board change nothing."""
        match event:
            case e.BoardOpened():
                if self._sign is not None:
                    self._opened(event, now)
            case e.ClockRead(unix):
                self._unix_offset = unix - now
                self.expire(now)
            case e.PostWanted(number, draft):
                self._post_wanted(number, draft, now)
            case e.PostSaved(number):
                self._post_saved(number, now)
            case e.PostFailed(number, reason):
                if self._pending is not None and self._pending[0] == number:
                    self._pending = None
                    self._refuse(number, reason)
                    self._next_draft(now)

    def _opened(self, event: e.BoardOpened, now: float) -> None:
        self._unix_offset = event.unix - now
        self._epoch, self._last_seq, self._last_time = event.epoch, event.last_seq, event.last_time
        self._open = True
        self._keep_certificates(event.certificates, now)
        self._new_certificates = {}
        for entry in sorted(event.entries, key=lambda each: (each.header.epoch, each.header.seq)):
            author = entry.header.author
            if entry.header.mesh == self._mesh() and (author == self._node or self._is_author(author, now)):
                self.log.add(entry, self._ms(now))
        # What does not count any more leaves the store as well.
        held = {entry.id for entry in self.log}
        self.log.delta.removed += [entry.id for entry in event.entries if entry.id not in held]
        self._publish(now, opened=True)

    def _post_wanted(self, number: int, draft: EntryDraft, now: float) -> None:
        if not self._open:
            self._refuse(number, NOT_OPEN)
        elif len(self._drafts) >= MAX_PENDING:
            self._refuse(number, "Too many messages wait to be saved.", rate=True)
        else:
            self._drafts.append((number, draft))
            self._next_draft(now)

    def _next_draft(self, now: float) -> None:
        while self._pending is None and self._drafts:
            number, draft = self._drafts.popleft()
            entry = self._written(draft, now)
            if (reason := self._refusal(entry, draft)) != "":
                self._refuse(number, reason, rate=reason != NOT_OWN)
                continue
            self._pending = (number, entry)
            self._out.append(c.SavePost(number, entry))

    def _written(self, draft: EntryDraft, now: float) -> SignedEntry:
        """The draft with the next number and time (a hybrid logical clock: Kulkarni et al., OPODIS 2014), signed."""
        body = draft.body.encode()
        header = EntryHeader(
            mesh=self._mesh(),
            author=self._node,
            epoch=self._epoch,
            seq=self._last_seq + 1,
            time=max(self._ms(now), self._last_time, self.log.latest + 1),
            kind=int(draft.kind),
            room=draft.room,
            name=draft.name,
            program=draft.program,
            reply_to=draft.reply_to,
            to=draft.to,
            subject=draft.subject,
            seconds=draft.seconds,
            target=draft.target,
            body_bytes=len(body),
            body_hash=body_hash(body),
        )
        assert self._sign is not None  # it is open
        data, signature = self._sign(header)
        return SignedEntry(header, data, signature, entry_id(data), draft.body, self._ms(now))

    def _refusal(self, entry: SignedEntry, draft: EntryDraft) -> str:
        """Why this node may not post the entry, by the rules that its peers keep; "" if it may."""
        if draft.kind is EntryKind.RETRACT:
            target = self.log.entry(draft.target)
            if target is None or target.header.author != self._node:
                return NOT_OWN
        chain = self.log.chains.get(chain_of(entry)) or Chain(chain_of(entry), chain_of(entry).key)
        # Retracting, and ending or extending a claim, must be possible after a burst of messages.
        free = draft.kind in (EntryKind.RETRACT, EntryKind.RELEASE, EntryKind.RENEW)
        if chain.contradiction(entry, 0 if free else b.RESERVED_AT_ONCE) is not None:
            return (
                f"This node posts too fast: at most {b.ENTRIES_AT_ONCE} messages at once "
                f"and {b.ENTRIES_PER_MINUTE} a minute."
            )
        # What has no room would be dropped at once.
        if not free and self.log.count(self._node) >= b.ENTRIES_PER_LIFETIME:
            return f"This node has posted {b.ENTRIES_PER_LIFETIME} messages in 48 hours, which is the limit."
        return ""

    def _refuse(self, number: int, reason: str, *, rate: bool = False) -> None:
        self._out.append(c.RefusePost(number, reason, rate))

    def _post_saved(self, number: int, now: float) -> None:
        if self._pending is None or self._pending[0] != number:
            return
        entry, self._pending = self._pending[1], None
        self._last_seq = max(self._last_seq, entry.header.seq)
        self._last_time = max(self._last_time, entry.header.time)
        if entry.header.mesh == self._mesh():
            self.log.add(entry, max(self._ms(now), entry.header.time))
            self._push((entry,), but=None, now=now)
        self._publish(now, numbers=(number,))
        self._next_draft(now)

    # -- links

    def link_down(self, peer: NodeId) -> None:
        """The link to `peer` is gone; what it was asked for is asked for elsewhere."""
        self._peers.pop(peer, None)

    def _peer(self, peer: NodeId, now: float) -> BoardPeer:
        state = self._peers.get(peer)
        if state is None:
            state = self._peers[peer] = BoardPeer(TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, now))
        return state

    def _shares(self, peer: NodeId, now: float) -> bool:
        return self._members.may_share(peer, b"", self._unix(now))

    # -- comparing

    def hash_seen(self, peer: NodeId, theirs: bytes, now: float) -> None:
        """`peer` said the hash of its board: compare, if it differs."""
        if not self._open or not theirs:
            return
        state = self._peer(peer, now)
        pair = (self.log.hash, theirs)
        if pair[0] == theirs:
            state.pause, state.not_before = FIRST_PAUSE_SECONDS, 0.0
            self._fill_gaps(peer, state, now)
            return
        if pair != state.compared:
            state.pause = FIRST_PAUSE_SECONDS
        elif now < state.not_before:
            return
        if not state.may_ask(now) or not self._shares(peer, now):
            return  # its answer is on the way
        state.compared, state.not_before = pair, now + state.pause
        state.pause = min(2 * state.pause, LONGEST_PAUSE_SECONDS)
        if len(self.log.summary) <= FEW_CHAINS:
            self._send(peer, BoardDifference(0, (0,), self._states(self.log.summary.bucket(0, 0))))
        else:
            digest = self.log.summary.digest()
            self._send(peer, BoardDigest(digest.bits, digest.hashes))

    def _states(self, keys: Iterable[NodeId]) -> tuple[ChainState, ...]:
        return tuple([self._state(key) for key in islice(keys, MAX_CHAINS_LISTED)])

    def _state(self, key: NodeId) -> ChainState:
        chain = self.log.chain(key)
        assert chain is not None  # the summary lists what is held
        return ChainState(chain.id, chain.last, chain.floor, chain.proof is not None)

    def message(self, peer: NodeId, message: BoardMessage, now: float) -> None:
        """A linked peer sent a message about the board."""
        link = self._links.get(peer)
        if link is None or not self._open or not self._shares(peer, now):
            return
        match message:
            case BoardDigest():
                if link.allowance.take(now, COMPARE_PRICE):
                    self._answer_digest(peer, message)
            case BoardDifference():
                if link.allowance.take(now, COMPARE_PRICE):
                    self._compare(peer, message, now)
            case BoardWant():
                if link.allowance.take(now, WANT_PRICE):
                    self._give(peer, message, now)
            case BoardEntries():
                unknown = [data for data in message.certificates if data not in self._known]
                state = self._peer(peer, now)
                is_answer = bool(state.asked) and now < state.asked_until
                price = len(unknown) * CERTIFICATE_PRICE + (0 if is_answer else ENTRIES_PRICE)
                if link.allowance.take(now, price):
                    self._take(peer, message, now)

    def _answer_digest(self, peer: NodeId, digest: BoardDigest) -> None:
        found = self.log.summary.difference(Digest(digest.bits, digest.hashes))
        if found is None or not found.buckets:
            return
        self._send(peer, BoardDifference(found.bits, found.buckets, self._states(key for key, _ in found.held)))

    def _compare(self, peer: NodeId, theirs: BoardDifference, now: float) -> None:
        """Ask for what the peer has more, and tell it what it has less."""
        listed = {state.chain.key: state for state in theirs.chains}
        state = self._peer(peer, now)
        for each in theirs.chains:
            if self._lacks(each) and (len(state.targets) < MAX_TARGETS or each.chain in state.targets):
                state.targets[each.chain] = each
        self._want(peer, state, now)
        if theirs.reply:
            return
        behind = []
        for bucket in theirs.buckets:
            for key in self.log.summary.bucket(theirs.bits, bucket):
                mine, other = self._state(key), listed.get(key)
                newer = other is None or (mine.broken, mine.last) > (other.broken, other.last)
                if newer and not (other is not None and other.broken):
                    behind.append(mine)
        if behind and state.budget.take(now, STATE_BYTES * len(behind)):
            self._send(peer, BoardDifference(0, (), tuple(behind[:MAX_CHAINS_LISTED]), reply=True))

    def _lacks(self, theirs: ChainState) -> bool:
        chain = self.log.chains.get(theirs.chain)
        if chain is None:
            return theirs.last >= max(self.log.first_wanted(theirs.chain), theirs.floor)
        return chain.proof is None and (theirs.broken or theirs.last > chain.last)

    # -- asking

    def _want(self, peer: NodeId, state: BoardPeer, now: float) -> None:
        """Ask `peer` for what it listed and no other peer was asked for."""
        if not state.may_ask(now):
            return
        asked = self._asked_elsewhere(peer, now)
        ranges: list[ChainRange] = []
        for chain_id, theirs in list(state.targets.items()):
            if not self._lacks(theirs):
                del state.targets[chain_id]
            elif chain_id not in asked and now >= state.barren.get(chain_id, now) and len(ranges) < MAX_RANGES:
                ranges += self._missing(theirs)
        if ranges:
            self._ask(peer, state, ranges, now)

    def _ask(self, peer: NodeId, state: BoardPeer, ranges: list[ChainRange], now: float) -> None:
        state.asked, state.asked_until, state.brought = tuple(ranges[:MAX_RANGES]), now + ANSWER_SECONDS, {}
        self._send(peer, BoardWant(state.asked))

    def _asked_elsewhere(self, peer: NodeId, now: float) -> set[ChainId]:
        others = [state.asked for node, state in self._peers.items() if node != peer and now < state.asked_until]
        return {each.chain for asked in others for each in asked}

    def _missing(self, theirs: ChainState) -> list[ChainRange]:
        if theirs.broken:
            return [ChainRange(theirs.chain, 0, 0)]
        chain = self.log.chains.get(theirs.chain)
        first = max(self.log.first_wanted(theirs.chain), theirs.floor)
        if chain is None:
            return [ChainRange(theirs.chain, first, theirs.last)]
        return [ChainRange(theirs.chain, max(chain.last + 1, first), theirs.last)]

    def _fill_gaps(self, peer: NodeId, state: BoardPeer, now: float) -> None:
        """Ask `peer`, which has the same last entries, for those that are missing below: a peer may have hidden them,
        or a push came before them."""
        if not state.may_ask(now) or not self._shares(peer, now):
            return
        ranges: list[ChainRange] = []
        for chain in self.log.incomplete(MAX_TRIED):
            if peer not in chain.tried and len(ranges) < MAX_RANGES:
                chain.tried.add(peer)
                ranges += [ChainRange(chain.id, first, last) for first, last in self.log.missing(chain)]
        if ranges:
            self._ask(peer, state, ranges, now)

    # -- giving

    def _give(self, peer: NodeId, want: BoardWant, now: float) -> None:
        """Send what was asked for, within the limits; the rest is asked for again."""
        found: list[SignedEntry] = []
        left, budget = ANSWER_BYTES, self._peer(peer, now).budget
        for entry in self._in_ranges(want.ranges):
            size = _sent_bytes(entry)
            if left < size or not budget.take(now, size):
                break
            left -= size
            found.append(entry)
        portions = list(_portions(found)) or [()]
        for number, portion in enumerate(portions):
            message = BoardEntries(portion, self._certificates_for(portion), end=number + 1 == len(portions))
            self._send(peer, message)

    def _in_ranges(self, ranges: Iterable[ChainRange]) -> Iterator[SignedEntry]:
        for each in ranges:
            chain = self.log.chains.get(each.chain)
            if chain is None:
                continue
            if not each.first:
                yield from chain.proof or ()
            elif chain.proof is None:
                yield from (chain.entries[seq] for seq in chain.numbers_in(each.first, each.last))

    def _certificates_for(self, entries: Iterable[SignedEntry]) -> tuple[bytes, ...]:
        authors = dict.fromkeys(entry.header.author for entry in entries)
        found = [
            self._members.own_certificate() if author == self._node else self._certificates.get(author, b"")
            for author in authors
        ]
        return tuple([data for data in found if data])

    def _push(self, entries: tuple[SignedEntry, ...], but: NodeId | None, now: float) -> None:
        for portion in _portions(entries):
            message = BoardEntries(portion, self._certificates_for(portion), push=True)
            for peer, _ in self._links.items():
                if peer != but and self._shares(peer, now):
                    self._send(peer, message)

    # -- taking

    def _take(self, peer: NodeId, message: BoardEntries, now: float) -> None:
        state = self._peer(peer, now)
        self._keep_certificates(message.certificates, now)
        news: list[SignedEntry] = []
        ms = self._ms(now)
        for received in message.entries:
            header = received.header
            if header.mesh != self._mesh() or not self._is_author(header.author, now):
                continue
            if (header.author, header.epoch) == (self._node, self._epoch):
                # If this node does not know it, its store is an old copy: go on above it.
                self._last_seq, self._last_time = max(self._last_seq, header.seq), max(self._last_time, header.time)
            result = self.log.add(replace(received, first_seen=ms), ms)
            if result in (AddResult.NEW, AddResult.FILLED, AddResult.BROKEN):
                chain_id = chain_of(received)
                state.brought[chain_id] = state.brought.get(chain_id, 0) + _sent_bytes(received)
                self._ahead.pop(received.id, None)
                if result is not AddResult.FILLED and message.push and self._may_push(header.author, now):
                    news.append(received)
            elif result is AddResult.AHEAD and len(self._ahead) < b.MAX_AUTHOR_ENTRIES:
                self._ahead[received.id] = header.time
        if news:
            self._push(tuple(news), but=peer, now=now)
        if message.end and state.asked:
            if state.answered(now):
                self._want(peer, state, now)
            else:
                state.targets.clear()
        self._publish(now)

    def _may_push(self, author: NodeId, now: float) -> bool:
        """Whether a new entry of `author` is passed on at once. An author that begins one epoch after the other could
        otherwise have all nodes send as fast as they can."""
        bucket = self._pushes.pop(author, None) or TokenBucket(PUSHES_PER_SECOND, PUSHES_AT_ONCE, now)
        self._pushes[author] = bucket
        if len(self._pushes) > MAX_PUSHING_AUTHORS:
            del self._pushes[next(iter(self._pushes))]
        return bucket.take(now)

    def _keep_certificates(self, certificates: Iterable[bytes], now: float) -> None:
        for data in certificates:
            if data in self._known:
                continue
            author = self._members.holder(data, self._unix(now))
            if author is None or author == self._node or len(self._certificates) >= b.MAX_ENTRIES:
                continue
            self._known.discard(self._certificates.get(author, b""))
            self._known.add(data)
            self._certificates[author] = data
            self._new_certificates[author] = data

    def _is_author(self, author: NodeId, now: float) -> bool:
        return self._members.may_share(author, self._certificates.get(author, b""), self._unix(now))

    # -- time

    def expire(self, now: float) -> None:
        """Remove what is too old; to be called when the timer is due."""
        if not self._open:
            return
        self.log.expire(self._ms(now))
        for author in [author for author in self._certificates if not self.log.count(author)]:
            self._known.discard(self._certificates.pop(author))
        ms = self._ms(now) + b.MAX_AHEAD_SECONDS * 1000
        self._ahead = {entry: time for entry, time in self._ahead.items() if time > ms}
        self._publish(now)

    def members_changed(self, now: float) -> None:
        """Members were expelled, or the mesh has another key: what they wrote goes with them."""
        if not self._open:
            return
        for author in {chain.author for chain in self.log.chains}:
            if author != self._node and not self._is_author(author, now):
                self.log.remove_author(author)
                self._known.discard(self._certificates.pop(author, b""))
        self._publish(now)

    def mesh_changed(self, now: float) -> None:
        """The mesh has another id: entries of the former one are shown, and not passed on any more."""
        self.log.unlist()
        self._epoch, self._last_seq = max(self._epoch + 1, self._ms(now)), 0

    def _publish(self, now: float, *, opened: bool = False, numbers: tuple[int, ...] = ()) -> None:
        delta = self.log.take_delta()
        facts = (len(self._ahead), self.log.flagged)
        if opened or numbers or delta.added or delta.erased or delta.removed or facts != self._facts:
            self._facts = facts
            certificates, self._new_certificates = tuple(self._new_certificates.values()), {}
            self._out.append(
                c.BoardChanged(
                    tuple(delta.added), tuple(delta.erased), tuple(delta.removed), certificates, *facts, numbers
                )
            )
        at = self.log.next_expiry
        wait = LONGEST_WAIT_SECONDS if at is None else max(0.001, at / 1000 - self._unix(now))
        if at is not None or self._ahead:
            self._timers.set(Timer.BOARD, now + min(wait, LONGEST_WAIT_SECONDS))

    def _send(self, peer: NodeId, message: Message) -> None:
        self._out.append(c.Send(peer, message))


def _sent_bytes(entry: SignedEntry) -> int:
    body = entry.header.body_bytes if entry.body is not None else 0
    return len(entry.data) + len(entry.signature) + body + 16


def _portions(entries: Iterable[SignedEntry]) -> Iterator[tuple[SignedEntry, ...]]:
    portion: list[SignedEntry] = []
    size = 0
    for entry in entries:
        if portion and (len(portion) >= MAX_ENTRIES_SENT or size + _sent_bytes(entry) > MAX_ENTRIES_BYTES):
            yield tuple(portion)
            portion, size = [], 0
        portion.append(entry)
        size += _sent_bytes(entry)
    if portion:
        yield tuple(portion)
