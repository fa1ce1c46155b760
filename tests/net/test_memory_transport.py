"""Memory only: a network that can be cut and healed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from net_rig import Talker, World

from meshllm.errors import PeerUnreachable, PortTaken
from meshllm.net import memory
from meshllm.net.base import StreamKind
from meshllm.net.memory import MemoryTransport
from meshllm.net.quic import happy_eyeballs


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World("memory")
    yield made
    await made.close()


async def test_cut_network_delivers_after_healing(world: World) -> None:
    one, other, dialled, _ = await world.pair()
    third = await world.node()
    await third.transport.dial(other.way)
    world.network.cut(one.address, other.address)
    talker = Talker()
    dialled.open(StreamKind.HTTP_TUNNEL, talker).write(b"question")
    dialled.send(b"message")
    third.transport.links()[0].send(b"not cut")
    await other.heard.until(lambda: other.heard.messages)
    assert other.heard.messages == [b"not cut"]
    assert other.heard.streams == []
    world.network.heal(one.address, other.address)
    await other.heard.until(lambda: len(other.heard.messages) == 2 and other.heard.streams)
    assert other.heard.streams[0].received == b"question"


async def test_network_cut_for_the_idle_timeout_ends_the_link_at_both_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "IDLE_SECONDS", 0.05)
    one, other, dialled, _ = await world.pair()
    talker = Talker()
    dialled.open(StreamKind.HTTP_TUNNEL, talker)
    world.network.cut(one.address, other.address)
    for node in (one, other):
        await node.heard.until(lambda: not one.heard.up and not other.heard.up)
        assert node.heard.reasons == ["Idle timeout"]
    await talker.until(lambda: talker.lost)
    monkeypatch.setattr(happy_eyeballs, "DIAL_SECONDS", 0.05)
    with pytest.raises(PeerUnreachable):
        await one.transport.dial(other.way)
    world.network.heal(one.address, other.address)
    await one.transport.dial(other.way)


async def test_close_of_a_cut_link_is_not_delivered(world: World) -> None:
    one, other, dialled, accepted = await world.pair()
    world.network.cut(one.address, other.address)
    dialled.close("nobody hears this")
    world.network.heal(one.address, other.address)
    assert accepted.closed is None
    link = await one.transport.dial(other.way)
    await other.heard.until(lambda: len(other.heard.events) == 3)
    assert other.heard.reasons == ["replaced by a new link"]
    assert link.send(b"on the new one")


async def test_address_has_one_listener(world: World) -> None:
    one = await world.node()
    again = MemoryTransport(one.transport.identity, lambda: one.transport._credentials(), world.network)
    again.address = one.address
    with pytest.raises(PortTaken):
        await again.start(one.heard)
