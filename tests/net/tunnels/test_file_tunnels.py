"""Model files through tunnels: uploader and downloader over streams and lanes, on both event loops."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from lane_rig import town
from net_rig import World

from meshllm.errors import LinkClosed
from meshllm.models.p2p.peer_connection import PeerConnection
from meshllm.models.p2p.seeder import Seeder, SeedFile
from meshllm.net.base import StreamKind
from meshllm.wire.mesh import files as w

CHUNK = 1 << 20
CONTENT = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(100_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COUNT = -(-len(CONTENT) // CHUNK)


class OneFile:
    """An index with one file."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(CONTENT)
        digests = [hashlib.sha256(CONTENT[: at + CHUNK]).digest() for at in range(0, len(CONTENT), CHUNK)]
        self.file = SeedFile(path, w.ChunkListing(len(CONTENT), CHUNK, b"".join(digests)), path.stat().st_mtime_ns)

    async def lookup(self, sha256: str) -> SeedFile | w.FileRefusal:
        return self.file if sha256 == SHA256 else w.FileRefusal(w.FileRefusalReason.ABSENT)

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        return w.FoundModels(())


async def taken(line: PeerConnection) -> bytes:
    """The whole file, all chunks requested at once."""
    listing = await line.request_listing(SHA256, COUNT)
    assert isinstance(listing, w.ChunkListing)
    rooms = [memoryview(bytearray(min(CHUNK, len(CONTENT) - number * CHUNK))) for number in range(COUNT)]
    assert await asyncio.gather(*(line.read_chunk(number, room) for number, room in enumerate(rooms))) == [None] * COUNT
    return b"".join(rooms)


@pytest.mark.parametrize("kind", ["memory", "quic"])
async def test_file_transfer_works_over_a_stream(tmp_path: Path, kind: str) -> None:
    world, giver = World(kind), Seeder(OneFile(tmp_path / "a.gguf"), lambda: None)
    _, other, dialled, _ = await world.pair()
    other.heard.serve = lambda kind: giver.serve("taker")  # type: ignore[assignment,return-value]
    line = PeerConnection()
    dialled.open(StreamKind.FILES, line)
    assert line.transport == "quic"
    assert await taken(line) == CONTENT
    assert [given.transport for given in giver.uploads()] == ["quic"]
    line.end(LinkClosed("Enough."))
    await giver.close()
    await world.close()


async def test_file_transfer_works_over_a_lane(tmp_path: Path) -> None:
    giver = Seeder(OneFile(tmp_path / "a.gguf"), lambda: None)
    async with town(tmp_path) as place:
        there = place.nodes[1]
        there.tunnels.serve(StreamKind.FILES, lambda peer: giver.serve(peer.hex()))
        line = PeerConnection()
        await place.nodes[0].tunnels.open(there.node, StreamKind.FILES, lambda: line)
        assert line.transport == "lane"
        assert await taken(line) == CONTENT
        (given,) = giver.uploads()
        assert (given.peer, given.transport) == (place.nodes[0].node.hex(), "lane")
        line.end(LinkClosed("Enough."))
        with pytest.raises(LinkClosed, match="Enough"):
            await line.request_listing(SHA256, COUNT)
        await giver.close()


async def test_file_transfer_ends_with_the_link(tmp_path: Path) -> None:
    giver = Seeder(OneFile(tmp_path / "a.gguf"), lambda: 1.0)
    async with town(tmp_path) as place:
        there = place.nodes[1]
        there.tunnels.serve(StreamKind.FILES, lambda peer: giver.serve(peer.hex()))
        line = PeerConnection()
        await place.nodes[0].tunnels.open(there.node, StreamKind.FILES, lambda: line)
        await line.request_listing(SHA256, COUNT)
        room = memoryview(bytearray(CHUNK))
        waiting = asyncio.gather(line.read_chunk(0, room), return_exceptions=True)
        place.link().close("cut")
        (error,) = await waiting
        assert isinstance(error, LinkClosed)
        await giver.close()


async def test_cancelled_download_closes_the_tunnel(tmp_path: Path) -> None:
    giver = Seeder(OneFile(tmp_path / "a.gguf"), lambda: 1.0)
    async with town(tmp_path) as place:
        there = place.nodes[1]
        there.tunnels.serve(StreamKind.FILES, lambda peer: giver.serve(peer.hex()))
        line = PeerConnection()
        await place.nodes[0].tunnels.open(there.node, StreamKind.FILES, lambda: line)
        await line.request_listing(SHA256, COUNT)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await line.read_chunk(0, memoryview(bytearray(CHUNK)))
        with pytest.raises(LinkClosed):
            await line.read_chunk(1, memoryview(bytearray(CHUNK)))
        await giver.close()
