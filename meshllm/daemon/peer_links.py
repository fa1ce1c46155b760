"""Carries out the core's commands for links (dial, hang up, send), and turns what happens on links into events.

Invariants: a peer that sends a malformed message, or more than it may, loses its link, and no other link is affected.
Each dial is answered by a link or by `DialFailed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.messages import Message
from meshllm.core.membership.table import MAX_NODES
from meshllm.core.records import BootstrapAddress, NodeId, short
from meshllm.daemon.message_counters import MessageCounters
from meshllm.daemon.record_verifier import Admit, MessageQueues, RecordVerifier
from meshllm.errors import BadMessage, DialLimitReached, LinkClosed, MeshError, PeerRefused
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.tasks import Owner
from meshllm.util.rate_limiter import TokenBucket
from meshllm.wire.mesh.codec import ParsedMessage, Verify

log = logging.getLogger(__name__)

# What one peer may send (the number of messages is the core's business): a whole table of 10,000 nodes is 5 MB, and the
# changes in a mesh of 1,000 nodes are some kB and some 10 records a second.
BYTES_PER_SECOND, BYTES_AT_ONCE = 1 << 20, 16 << 20
RECORDS_PER_SECOND, RECORDS_AT_ONCE = 400, MAX_NODES
# How often a link that the core gave up is checked for streams and tunnels that still use it (seconds).
HANG_UP_CHECK_SECONDS = 1.0
# How long a link to an expelled node stays open, so that the statement about it arrives.
LAST_WORD_SECONDS = 0.25
# Links that end because of misbehaving peers are logged at most once in this time (seconds), with their number.
BAD_PEER_LOG_SECONDS = 10.0
# Refusals of an invite that no other member and no later time change (docs/protocol.md); the last: the invite of a node
# that was expelled from that mesh.
VOID_INVITE = frozenset({"wrong_invite", "expired_invite", "revoked_invite", "used_invite", "expelled"})

Serve = Callable[[Link, StreamKind], asyncio.BaseProtocol | None]


class MessageAllowance:
    """What a peer may still send: bytes and records."""

    def __init__(self, now: float) -> None:
        self._bytes = TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, now)
        self._records = TokenBucket(RECORDS_PER_SECOND, RECORDS_AT_ONCE, now)

    def take_bytes(self, count: int, now: float) -> bool:
        """Whether the peer may send `count` bytes now."""
        return self._bytes.take(now, count)

    def take_records(self, count: int, now: float) -> bool:
        """Whether the peer may send `count` records now."""
        return self._records.take(now, count)


class PeerLinks:
    """The `LinkHandler` of this node."""

    def __init__(
        self,
        post: Callable[[e.Event], None],
        encode: Callable[[Message], bytes],
        parse: Callable[[bytes], ParsedMessage | None],
        verify: Verify,
        serve: Serve,
        in_use: Callable[[NodeId], bool] = lambda peer: False,
        admit: Admit | None = None,
        use_other_credentials: Callable[[str], bool] = lambda refusal: False,
        name_of: Callable[[bytes], str] = lambda pin: "",
        by_invite: Callable[[], bool] = lambda: False,
    ) -> None:
        """`parse` raises BadMessage for a malformed message and returns None for a kind of a newer version; `verify`
        checks a signature; `serve` returns what serves a stream that a peer opens, or None; `in_use`: whether a peer
        uses lanes or tunnels beside its link's own streams, so that its link must stay; `admit`: as of
        `RecordVerifier`; `use_other_credentials`: whether this node has others to dial with after that refusal;
        `name_of`: the name of the node whose id begins so, "" if it is not known; `by_invite`: whether this node dials
        with an invite now."""
        self._by_invite = by_invite
        self._name_of = name_of
        self._use_other_credentials = use_other_credentials
        self._post = post
        self._encode = encode
        self._parse = parse
        self._serve = serve
        self._in_use = in_use
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._owner = Owner("links")
        self._transport: Transport | None = None
        self._up: dict[NodeId, Link] = {}
        self._allowances: dict[NodeId, MessageAllowance] = {}
        self._messages = MessageQueues(RecordVerifier(verify, admit), self._deliver, self._refuse, self._loop.call_soon)
        self._hang_ups: dict[NodeId, str] = {}
        self._hang_up_timer: asyncio.TimerHandle | None = None
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        self._logged_at, self._not_logged = float("-inf"), 0
        self.counters = MessageCounters()
        self._closing = False

    def attach(self, transport: Transport) -> None:
        """Set the transport that dials and holds the links. Called before the first command."""
        self._transport = transport

    async def close(self) -> None:
        """Stop dialling; dials under way end without an event."""
        self._closing = True
        if self._hang_up_timer is not None:
            self._hang_up_timer.cancel()
        await self._owner.close()

    # -- commands

    def carry_out(self, command: c.DialPeer | c.HangUp | c.Send) -> None:
        """Begin `command`; returns at once."""
        match command:
            case c.DialPeer(target):
                self._cancel_hang_up(target)
                if not self._closing:
                    self._owner.start(self._dial(target), "dial")
            case c.HangUp(peer, reason, True):
                self._close_at_once(peer, reason)
            case c.HangUp(peer, reason):
                self._hang_ups[peer] = reason
                self._close_unused()
            case c.Send(peer, message):
                self._send(peer, message)

    async def _dial(self, target: BootstrapAddress) -> None:
        assert self._transport is not None
        try:
            try:
                await self._transport.dial(target)
            except PeerRefused as error:
                if not self._use_other_credentials(error.reason):
                    raise
                await self._transport.dial(target)
        except MeshError as error:
            final = isinstance(error, PeerRefused)
            # Limits and the stop of this node say nothing about the peer.
            local = isinstance(error, DialLimitReached | LinkClosed)
            log.info("no link to %s: %s", self._label(target.pin), error)
            # A member that dials with its certificate goes on, whatever a peer says of an invite.
            void = isinstance(error, PeerRefused) and error.reason in VOID_INVITE and self._by_invite()
            self._post(e.DialFailed(target, error.message, error.advice, final, local, invite_void=void))
        except Exception as error:
            log.exception("dialling %s failed", target.pin[:5].hex())
            advice = "This is a bug in mesh-llm; please report it."
            self._post(e.DialFailed(target, f"dialling failed: {error!r}", advice, local=True))

    def _cancel_hang_up(self, target: BootstrapAddress) -> None:
        """A link that is dialled again is not closed."""
        for peer in [peer for peer in self._hang_ups if peer.startswith(target.pin)]:
            del self._hang_ups[peer]

    def _close_at_once(self, peer: NodeId, reason: str) -> None:
        """Close the link to a node that is no member any more, with all that runs over it.

        A moment later: closing drops what is not sent yet, such as the statement that tells the node why.
        """
        assert self._transport is not None
        self._hang_ups.pop(peer, None)
        link = self._transport.link(peer)
        if link is not None:
            self._messages.drop(peer)
            self._allowances.pop(peer, None)  # nothing that it sends is read any more
            self._loop.call_later(LAST_WORD_SECONDS, link.close, reason)

    def _close_unused(self) -> None:
        """Close the links that the core gave up and that nothing uses; check the others again later."""
        assert self._transport is not None
        for peer, reason in list(self._hang_ups.items()):
            link = self._transport.link(peer)
            if link is not None and (link.streams or self._in_use(peer)):
                continue
            self._hang_ups.pop(peer, None)
            if link is not None:
                link.close(reason)
        if self._hang_ups and self._hang_up_timer is None and not self._closing:
            self._hang_up_timer = self._loop.call_later(HANG_UP_CHECK_SECONDS, self._check_hang_ups)

    def _check_hang_ups(self) -> None:
        self._hang_up_timer = None
        self._close_unused()

    def _send(self, peer: NodeId, message: Message) -> None:
        assert self._transport is not None
        link = self._transport.link(peer)
        if link is None:
            return
        # The same message goes to several peers in a row: it is encoded once.
        if self._encoded[0] is not message:
            try:
                self._encoded = (message, self._encode(message))
            except ValueError:
                log.exception("a message exceeds its bounds: this is a bug in mesh-llm")
                return
        if not link.send(self._encoded[1]):
            log.debug("%s reads too slowly: %s dropped", self._label(peer), type(message).__name__)
            return
        self.counters.count("sent", message, len(self._encoded[1]))

    # -- what happens on links

    def link_up(self, link: Link) -> None:
        """A link came up."""
        facts = link.facts
        self._hang_ups.pop(facts.peer, None)
        self._messages.finish(facts.peer)  # of the link that this one replaces
        self._up[facts.peer] = link
        self._allowances[facts.peer] = MessageAllowance(self._clock())
        fields = {
            "peer": short(facts.peer),
            "name": self._name_of(facts.peer) or None,
            "address": str(facts.address),
            "role": facts.role.value,
            "dialled": facts.dialled,
            "rtt_ms": round(facts.rtt * 1000, 1),
        }
        log.info("link up", extra={"fields": fields})
        self._post(
            e.LinkUp(
                facts.peer, facts.role, facts.mesh, facts.address, facts.rtt, facts.dialled, member=facts.certificate
            )
        )

    def link_down(self, link: Link, reason: str) -> None:
        """A link ended."""
        peer = link.facts.peer
        if self._up.get(peer) is not link:
            return  # replaced, or never posted
        del self._up[peer]
        self._hang_ups.pop(peer, None)
        self._allowances.pop(peer, None)
        self._messages.finish(peer)
        fields = {"peer": short(peer), "name": self._name_of(peer) or None, "reason": reason}
        log.info("link down", extra={"fields": fields})
        self._post(e.LinkDown(peer, reason))

    def message(self, link: Link, payload: bytes) -> None:
        """A peer sent a message. Its records are verified over the next turns of the event loop."""
        peer, now = link.facts.peer, self._clock()
        allowance = self._allowances.get(peer)
        if allowance is None:
            return  # of a link that is closed already
        if not allowance.take_bytes(len(payload), now):
            self.counters.rate_limited += 1
            self._end(link, "it sends more bytes than it may")
            return
        try:
            parsed = self._parse(payload)
        except BadMessage as error:
            self._end(link, f"it sent a malformed message: {error.message}")
            return
        if parsed is None:
            return
        if not allowance.take_records(len(parsed.records) + len(parsed.checks), now):
            self.counters.rate_limited += 1
            self._end(link, "it sends more records than it may")
            return
        self.counters.count("received", parsed.build((), ()), len(payload))
        self._messages.put(peer, parsed)

    def _deliver(self, peer: NodeId, message: Message) -> None:
        self._post(e.MessageReceived(peer, message))

    def _refuse(self, peer: NodeId, error: BadMessage) -> None:
        link = self._up.get(peer)
        if link is not None:
            self._end(link, f"it sent a malformed message: {error.message}")

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """What serves a stream that a peer opens, or None."""
        return None if self._closing else self._serve(link, kind)

    def _label(self, pin: bytes) -> str:
        """A node for people: its name, if it is known, and the beginning of its id."""
        name, ident = self._name_of(pin), pin[:5].hex()
        return f"{name} ({ident})" if name else ident

    def _end(self, link: Link, reason: str) -> None:
        self._allowances.pop(link.facts.peer, None)
        self._messages.drop(link.facts.peer)
        now = self._clock()
        self._not_logged += 1
        if now - self._logged_at >= BAD_PEER_LOG_SECONDS:
            label = self._label(link.facts.peer)
            log.warning("closed the link to %s: %s (%d such links)", label, reason, self._not_logged)
            self._logged_at, self._not_logged = now, 0
        link.close(reason)
