"""Seeding peers on local sockets, correct and faulty ones, and a mesh of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from meshllm.errors import PeerUnreachable
from meshllm.models.p2p.downloader import SwarmPeer
from meshllm.models.p2p.seeder import Seeder, SeedFile
from meshllm.models.p2p.swarm import Swarm, SwarmSource
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.prefix_hash import PrefixDigests, hash_arriving
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread
from meshllm.wire.mesh import files as w

CHUNK = 4096
PATIENCE = 30.0


def digests_of(content: bytes, chunk: int = CHUNK) -> bytes:
    """Chunk digests of `content`."""
    return b"".join(hashlib.sha256(content[: at + chunk]).digest() for at in range(0, len(content), chunk))


def false_digests(false: bytes, content: bytes) -> bytes:
    """False chunk digests that end with the digest of `content`."""
    return digests_of(false)[:-32] + hashlib.sha256(content).digest()


async def fetch(source: SwarmSource, partial: PartialFile) -> PrefixDigests:
    """Download and hash a whole file; its digests. Raises DownloadFailed, OSError."""
    owner = Owner("fetch", on_error=lambda name, error: None)
    following = in_thread(lambda stop: hash_arriving(stop, partial, lambda done: None), "follow")
    reading = owner.start(following, "follow")
    try:
        while not reading.done():
            await source.download_into(partial)
            refuted = owner.start(partial.changed(None, complete=False), "refuted")
            await asyncio.wait([reading, refuted], return_when=asyncio.FIRST_COMPLETED)
        return reading.result()
    finally:
        await owner.close()


def content_of(chunks: int, seed: int = 0) -> bytes:
    """Content of `chunks` different chunks, the last one shorter."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, at)).digest() * (CHUNK // 32) for at in range(chunks))[:-100]


@dataclass
class FakeSeedIndex:
    """A SeedIndex with the given files."""

    files: dict[str, SeedFile] = field(default_factory=dict)
    models: tuple[w.OfferedModel, ...] = ()
    refusals: list[w.FileRefusal] = field(default_factory=list)

    def put(self, path: Path, content: bytes, claimed: bytes | None = None) -> str:
        """Write a file and offer it, with `claimed` as its chunk digests; returns its sha256."""
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        listing = w.ChunkListing(len(content), CHUNK, digests_of(content) if claimed is None else claimed)
        self.files[sha256] = SeedFile(path, listing, path.stat().st_mtime_ns)
        return sha256

    async def lookup(self, sha256: str) -> SeedFile | w.FileRefusal:
        if self.refusals:
            return self.refusals.pop(0)
        return self.files.get(sha256, w.FileRefusal(w.FileRefusalReason.ABSENT))

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        if self.refusals:
            return self.refusals.pop(0)
        return w.FoundModels(tuple(model for model in self.models if model.name == name))


class Site:
    """A mesh in which each added peer is a holder of every model."""

    def __init__(self) -> None:
        self.peers: list[SwarmPeer] = []
        self.settling = False
        self.opened: list[str] = []
        self.waited_for = asyncio.Event()
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._news: list[asyncio.Future[None]] = []
        self._transports: dict[str, list[asyncio.Transport]] = {}

    async def add(self, name: str, serve: Callable[[], asyncio.BaseProtocol]) -> SwarmPeer:
        """Add a peer that serves tunnels with a protocol of `serve`."""
        server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        peer = SwarmPeer(hashlib.sha256(name.encode()).hexdigest(), name)
        self._ports[peer.id] = server.sockets[0].getsockname()[1]
        self.appear(peer)
        return peer

    def appear(self, peer: SwarmPeer) -> None:
        """Add a peer to the mesh."""
        self.peers.append(peer)
        self._tell()

    def vanish(self, peer: SwarmPeer) -> None:
        """Remove a peer from the mesh."""
        self.peers.remove(peer)
        self._tell()

    def cut(self, peer: SwarmPeer) -> None:
        """Break all connections to the peer and refuse new ones."""
        self._ports.pop(peer.id)
        for transport in self._transports.get(peer.id, ()):
            transport.abort()

    def _tell(self) -> None:
        for future in self._news:
            if not future.done():
                future.set_result(None)
        self._news.clear()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    # -- what taking sees

    def holders(self, model: str) -> Sequence[SwarmPeer]:
        return list(self.peers)

    async def open(self, peer: str, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self.opened.append(peer)
        if peer not in self._ports:
            raise PeerUnreachable("Nobody there.")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(factory, "127.0.0.1", self._ports[peer])
        self._transports.setdefault(peer, []).append(transport)

    async def changed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._news.append(future)
        self.waited_for.set()
        await future


class Liar(asyncio.Protocol):
    """A seeder of `content` with faults: `spoil` may change the answer to a request."""

    def __init__(self, content: bytes, spoil: Callable[[w.Request, bytes], bytes | None], claimed: bytes = b"") -> None:
        self._content = content
        self._spoil = spoil
        self._claimed = claimed or digests_of(content)
        self._reader = w.FrameReader(w.place_request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            request = w.decode_request(frame)
            assert not isinstance(request, w.UnknownRequest)
            answer = self._spoil(request, self._honest(request))
            if answer is None:
                self._transport.abort()
                return
            self._transport.write(answer)

    def _honest(self, request: w.Request) -> bytes:
        if isinstance(request, w.ChunkRequest):
            data = self._content[request.chunk * CHUNK : (request.chunk + 1) * CHUNK]
            return w.header(w.FileFrameKind.CHUNK, request.chunk, len(data)) + data
        if isinstance(request, w.HaveRequest):
            return w.encode_answer(w.ChunkListing(len(self._content), CHUNK, self._claimed))
        return w.encode_answer(w.FoundModels(()))


@dataclass
class Rig:
    """A folder, a mesh and the downloading side."""

    folder: Path
    site: Site
    swarm: Swarm
    uploaders: list[Seeder] = field(default_factory=list)
    made: list[PartialFile] = field(default_factory=list)

    async def uploader(
        self, name: str, content: bytes, *, claimed: bytes | None = None, rate: float | None = None
    ) -> tuple[SwarmPeer, FakeSeedIndex]:
        """A real seeder of `content`."""
        index = FakeSeedIndex()
        index.put(self.folder / f"{name}.gguf", content, claimed)
        uploader = Seeder(index, lambda: rate)
        self.uploaders.append(uploader)
        return await self.site.add(name, lambda: uploader.serve("taker")), index

    async def liar(
        self, name: str, content: bytes, spoil: Callable[[w.Request, bytes], bytes | None], claimed: bytes = b""
    ) -> SwarmPeer:
        """A faulty seeder."""
        return await self.site.add(name, lambda: Liar(content, spoil, claimed))

    def partial(self, content: bytes) -> PartialFile:
        """A new PartialFile of that content."""
        path = self.folder / "taken.part"
        partial = PartialFile(path, len(content), hashlib.sha256(content).hexdigest(), chunk_bytes=CHUNK)
        self.made.append(partial)
        return partial


@asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[Rig]:
    """Checks that nothing is left at the end."""
    before = asyncio.all_tasks()
    site = Site()
    made = Rig(folder, site, Swarm(site))
    try:
        async with asyncio.timeout(PATIENCE):
            yield made
    finally:
        for uploader in made.uploaders:
            await uploader.close()
        await site.close()
        for partial in made.made:
            partial.close()
    assert asyncio.all_tasks() <= before
