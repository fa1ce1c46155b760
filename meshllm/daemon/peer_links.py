"""Carries out what the core wants of links (dial, hang up, send), and turns what happens on them into events.

Law: a peer is hostile until its bytes have been decoded; whoever sends what is no message, or more than it may, loses
its link, and nobody else notices. What was dialled is always answered, by a link or by `DialFailed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.messages import Message
from meshllm.core.records import BootstrapAddress, NodeId, short
from meshllm.daemon.message_counters import MessageCounters
from meshllm.errors import BadMessage, MeshError, PeerRefused
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.tasks import Owner
from meshllm.util.rate_limiter import TokenBucket

log = logging.getLogger(__name__)

# What one peer may say, in bytes (how many messages is the link's business): records cost us a signature check each, at
# about 500 bytes. A whole table of 10,000 nodes is 5 MB; what changes in a mesh of 1,000 is some kB a second.
BYTES_PER_SECOND, BYTES_AT_ONCE = 1 << 20, 16 << 20
# A link that is to be closed and still carries a tunnel is looked at again so often (seconds).
HANG_UP_CHECK_SECONDS = 1.0
# Of misbehaving peers the log tells once in so many seconds; how often it happened is counted.
COMPLAINT_SECONDS = 10.0

Serve = Callable[[Link, StreamKind], asyncio.BaseProtocol | None]


class PeerLinks:
    """The `LinkHandler` of this node, and the hands of its core for links."""

    def __init__(
        self,
        post: Callable[[e.Event], None],
        encode: Callable[[Message], bytes],
        decode: Callable[[bytes], Message | None],
        serve: Serve,
        in_use: Callable[[NodeId], bool] = lambda peer: False,
    ) -> None:
        """`decode` raises BadMessage for what is no message, and gives None for one of a newer kind; `serve` gives what
        serves a stream that a peer opens, or None; `in_use`: whether a peer is being talked to beside its link's own
        streams, so that hanging up would disturb."""
        self._post = post
        self._encode = encode
        self._decode = decode
        self._serve = serve
        self._in_use = in_use
        self._clock = asyncio.get_running_loop().time
        self._owner = Owner("links")
        self._transport: Transport | None = None
        self._up: dict[NodeId, Link] = {}
        self._allowances: dict[NodeId, TokenBucket] = {}
        self._unwanted: dict[NodeId, str] = {}
        self._checker: asyncio.TimerHandle | None = None
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        self._complained, self._unsaid = float("-inf"), 0
        self.counters = MessageCounters()
        self._closing = False

    def attach(self, transport: Transport) -> None:
        """What dials and holds the links; once, before the first command."""
        self._transport = transport

    async def close(self) -> None:
        """Nothing is dialled any more; what is waited for ends without an event."""
        self._closing = True
        if self._checker is not None:
            self._checker.cancel()
        await self._owner.close()

    # -- the core's wishes

    def carry_out(self, command: c.DialPeer | c.HangUp | c.Send) -> None:
        """Begin what `command` asks for; returns at once."""
        match command:
            case c.DialPeer(way):
                self._keep(way)
                if not self._closing:
                    self._owner.start(self._dial(way), "dial")
            case c.HangUp(peer, reason):
                self._unwanted[peer] = reason
                self._hang_up()
            case c.Send(peer, message):
                self._send(peer, message)

    async def _dial(self, way: BootstrapAddress) -> None:
        assert self._transport is not None
        try:
            await self._transport.dial(way)
        except MeshError as error:
            final = isinstance(error, PeerRefused)
            log.info("no link to %s: %s", way.pin[:5].hex(), error)
            self._post(e.DialFailed(way, error.message, error.advice, final))
        except Exception as error:
            log.exception("dialling %s failed", way.pin[:5].hex())
            self._post(e.DialFailed(way, f"dialling failed: {error!r}", "This is a defect; please report it."))

    def _keep(self, way: BootstrapAddress) -> None:
        """A link that is wanted again is not closed."""
        for peer in [peer for peer in self._unwanted if peer.startswith(way.pin)]:
            del self._unwanted[peer]

    def _hang_up(self) -> None:
        """Close what is to be closed and disturbs nobody; look again later if something is left."""
        assert self._transport is not None
        self._checker = None
        for peer, reason in list(self._unwanted.items()):
            link = self._transport.link(peer)
            if link is not None and (link.streams or self._in_use(peer)):
                continue
            self._unwanted.pop(peer, None)
            if link is not None:
                link.close(reason)
        if self._unwanted and self._checker is None and not self._closing:
            self._checker = asyncio.get_running_loop().call_later(HANG_UP_CHECK_SECONDS, self._hang_up)

    def _send(self, peer: NodeId, message: Message) -> None:
        assert self._transport is not None
        link = self._transport.link(peer)
        if link is None:
            return
        # News goes to several peers in a row: it is encoded once.
        if self._encoded[0] is not message:
            try:
                self._encoded = (message, self._encode(message))
            except ValueError:
                log.exception("a message of ours breaks a bound: this is a defect")
                return
        if not link.send(self._encoded[1]):
            log.debug("%s reads too slowly: %s dropped", short(peer), type(message).__name__)
            return
        self.counters.count("sent", message, len(self._encoded[1]))

    # -- what happens on links

    def link_up(self, link: Link) -> None:
        """A link is there."""
        facts = link.facts
        self._unwanted.pop(facts.peer, None)
        self._up[facts.peer] = link
        self._allowances[facts.peer] = TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, self._clock())
        fields = {
            "peer": short(facts.peer),
            "address": str(facts.address),
            "role": facts.role.value,
            "dialled": facts.dialled,
            "rtt_ms": round(facts.rtt * 1000, 1),
        }
        log.info("link up", extra={"fields": fields})
        self._post(e.LinkUp(facts.peer, facts.role, facts.mesh, facts.address, facts.rtt, facts.dialled))

    def link_down(self, link: Link, reason: str) -> None:
        """A link is gone."""
        peer = link.facts.peer
        if self._up.get(peer) is not link:
            return  # one that was never told of
        del self._up[peer]
        self._unwanted.pop(peer, None)
        self._allowances.pop(peer, None)
        log.info("link down", extra={"fields": {"peer": short(peer), "reason": reason}})
        self._post(e.LinkDown(peer, reason))

    def message(self, link: Link, payload: bytes) -> None:
        """A peer said something; or something that costs it its link."""
        peer = link.facts.peer
        allowance = self._allowances.get(peer)
        if allowance is None:
            return  # what still comes from a link that is closed already
        if not allowance.take(self._clock(), len(payload)):
            self.counters.rate_limited += 1
            self._end(link, "it sends more than it may")
            return
        try:
            message = self._decode(payload)
        except BadMessage as error:
            self._end(link, f"it sent what is no message: {error.message}")
            return
        if message is not None:
            self.counters.count("received", message, len(payload))
            self._post(e.MessageReceived(peer, message))

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """Who serves a stream that a peer opens; None: nobody."""
        return None if self._closing else self._serve(link, kind)

    def _end(self, link: Link, reason: str) -> None:
        self._allowances.pop(link.facts.peer, None)
        now = self._clock()
        self._unsaid += 1
        if now - self._complained >= COMPLAINT_SECONDS:
            log.warning("link to %s ended: %s (%d such links)", short(link.facts.peer), reason, self._unsaid)
            self._complained, self._unsaid = now, 0
        link.close(reason)
