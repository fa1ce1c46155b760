"""Whom a node asks for files, to whom it gives, and how fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import MeshId, NodeId, NodeRecord, PeerAddress, RecordVersion, Role, ServedModel
from meshllm.daemon import file_sharing
from meshllm.daemon.file_sharing import BUSY_RATE, FileSharing
from meshllm.daemon.mesh_session import MeshSession
from meshllm.errors import LinkClosed, UnknownModel
from meshllm.models.library.store import Store
from meshllm.models.p2p.share_policy import Share
from meshllm.net.base import StreamKind
from meshllm.wire.mesh import files as w

MESH, ME = MeshId(bytes(16)), NodeId(bytes(32))


class FakeMembership:
    """A tie to a mesh that leads nowhere."""

    def __init__(self, role: Role | None = Role.NODE) -> None:
        self.role = role
        self.served: dict[StreamKind, Callable[[NodeId], asyncio.BaseProtocol]] = {}
        self.opened: list[tuple[NodeId, StreamKind]] = []

    def serve(self, kind: StreamKind, factory: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        self.served[kind] = factory

    def role_of(self, peer: NodeId) -> Role | None:
        return self.role

    async def open(self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self.opened.append((peer, kind))


def peer(number: int, **options: Any) -> PeerView:
    """Node `number`, alive unless said otherwise."""
    has, serves, wants = options.pop("has", ()), options.pop("serves", ()), options.pop("wants", ())
    record = NodeRecord(
        NodeId(bytes([number] * 32)),
        RecordVersion(1, 1),
        MESH,
        name=f"n{number}",
        addresses=(PeerAddress("192.0.2.1", 7),),
        on_disk=has,
        serves=tuple(ServedModel(name) for name in serves),
        wants=wants,
    )
    return PeerView(record, options.pop("status", PeerStatus.ALIVE), **options)


def view(*peers: PeerView, phase: JoinPhase = JoinPhase.JOINED) -> MeshView:
    return MeshView(ME, MESH, Role.NODE, phase, peers=peers)


@asynccontextmanager
async def sharing_of(tmp_path: Path, membership: FakeMembership, **options: Any) -> AsyncIterator[FileSharing]:
    working = options.pop("working", lambda: False)
    made = FileSharing(cast(MeshSession, membership), Store(tmp_path / "models"), working, **options)
    try:
        yield made
    finally:
        await made.close()


async def test_file_sharing_asks_peers_that_list_the_model_first(tmp_path: Path) -> None:
    async with sharing_of(tmp_path, FakeMembership()) as made:
        assert list(made.holders("M")) == []
        made.publish(
            view(
                peer(1),
                peer(2, has=("M",)),
                peer(3, serves=("M",), linked=True, rtt=0.5),
                peer(4, has=("M",), linked=True, rtt=0.1),
                peer(5, linked=True),
                peer(6, has=("M",), status=PeerStatus.DEAD),
                peer(7, status=PeerStatus.UNVERIFIED),
                peer(8, status=PeerStatus.UNVERIFIED, linked=True),
            )
        )
        assert [found.name for found in made.holders("M")] == ["n4", "n3", "n2", "n5", "n8", "n1"]


async def test_model_without_a_known_digest_is_looked_up_on_the_owners_machines(tmp_path: Path) -> None:
    class Unreachable(FakeMembership):
        async def open(self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]) -> None:
            await super().open(peer, kind, factory)
            raise LinkClosed("gone")

    for owned_only, asked in ((True, {1}), (False, {1, 2})):
        membership = Unreachable()
        async with sharing_of(tmp_path, membership) as made:
            made.publish(view(peer(1, has=("M",), owned=True), peer(2, has=("M",))))
            with pytest.raises(UnknownModel):
                await made.find("M", "", lambda words: None, owned_only=owned_only)
        assert {node[0] for node, _ in membership.opened} == asked


@pytest.mark.parametrize(
    ("known", "listed"),
    [
        (peer(1, wants=("Own",), owned=True), True),
        (peer(1, wants=("own",), owned=True), True),
        (peer(1, wants=("Own",)), False),
        (peer(1, serves=("Own",)), True),
        (peer(1, wants=("Other",), owned=True), False),
    ],
    ids=["owner asks", "in another case", "stranger asks", "mesh serves", "another model"],
)
async def test_other_nodes_learn_of_a_file_that_the_mesh_runs_or_the_owner_asks_for(
    tmp_path: Path, known: PeerView, listed: bool
) -> None:
    file = tmp_path / "models" / "Own.gguf"
    async with sharing_of(tmp_path, FakeMembership()) as made:
        made.publish(view(known))
        assert made.allows({"Own": file}) == (("Own",) if listed else ())


async def test_file_sharing_bounds_the_peers_it_asks(tmp_path: Path) -> None:
    async with sharing_of(tmp_path, FakeMembership()) as made:
        made.publish(view(*[peer(number, has=("M",) if number < 100 else ()) for number in range(1, 200)]))
        assert len(made.holders("M")) == file_sharing.MAX_HOLDERS
        assert len(made.holders("Other")) == file_sharing.MAX_UNLISTED_PEERS


async def test_file_sharing_changed_returns_on_a_new_view(tmp_path: Path) -> None:
    async with sharing_of(tmp_path, FakeMembership()) as made:
        assert made.settling
        waiting = asyncio.gather(made.changed(), made.changed())
        await asyncio.sleep(0)
        made.publish(view(phase=JoinPhase.DIALLING))
        await waiting
        assert made.settling
        made.publish(view(phase=JoinPhase.ALONE))
        assert not made.settling
        made.publish(None)


async def test_file_sharing_opens_file_tunnels(tmp_path: Path) -> None:
    membership = FakeMembership()
    async with sharing_of(tmp_path, membership) as made:
        await made.open("01" * 32, asyncio.Protocol)
        assert membership.opened == [(NodeId(bytes([1] * 32)), StreamKind.FILES)]


async def answered(protocol: asyncio.BaseProtocol) -> w.Answer:
    """What a giver's end says to a question."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0)  # type: ignore[arg-type,return-value]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    writer.write(w.encode_request(w.HaveRequest("ab" * 32)))
    kind, number, length = w.HEADER.unpack(await reader.readexactly(w.HEADER.size))
    body = await reader.readexactly(length)
    writer.close()
    server.close()
    await server.wait_closed()
    return w.decode_answer(w.FileFrame(kind, number, memoryview(body)))


@pytest.mark.parametrize(
    ("role", "share", "reason"),
    [
        (Role.NODE, Share.KNOWN, w.FileRefusalReason.ABSENT),
        (Role.CLIENT, Share.ALL, w.FileRefusalReason.NOT_SHARED),
        (None, Share.ALL, w.FileRefusalReason.NOT_SHARED),
        (Role.NODE, Share.NONE, w.FileRefusalReason.NOT_SHARED),
    ],
)
async def test_file_sharing_serves_nodes_only_and_only_with_upload_enabled(
    tmp_path: Path, role: Role | None, share: Share, reason: w.FileRefusalReason
) -> None:
    membership = FakeMembership(role)
    async with sharing_of(tmp_path, membership, share=share) as made:
        answer = await answered(membership.served[StreamKind.FILES](NodeId(bytes([1] * 32))))
        assert isinstance(answer, w.FileRefusal)
        assert answer.reason is reason
        assert made.status().upload_enabled is (share is not Share.NONE)


@pytest.mark.parametrize(
    ("limit", "works", "rate"),
    [(None, False, None), (None, Share.ALL, BUSY_RATE), (1e6, False, 1e6), (1e6, True, 1e6), (1e9, True, BUSY_RATE)],
)
async def test_file_sharing_limits_uploads_while_the_engine_works(
    tmp_path: Path, limit: float | None, works: bool, rate: float | None
) -> None:
    async with sharing_of(tmp_path, FakeMembership(), rate=limit, working=lambda: works) as made:
        assert made.status().upload_limit == rate
