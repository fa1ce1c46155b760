"""One file from several sources and connections at once."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fake_hub import FakeHub

from meshllm.errors import DownloadFailed
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import HubSource, Manifest, ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer import fetcher
from meshllm.models.transfer import partial_file as assembly_module
from meshllm.models.transfer.ensure import chunk_digests, ensure
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.progress import TransferProgress, TransferStage
from meshllm.util.threads import in_thread

CHUNK = 8192


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Small chunks, so that a small file needs several connections."""
    return Store(tmp_path / "models", chunk_bytes=CHUNK)


def ignore(progress: TransferProgress) -> None:
    pass


def digests_of(content: bytes) -> bytes:
    return b"".join(hashlib.sha256(content[: at + CHUNK]).digest() for at in range(0, len(content), CHUNK))


async def together(fake: FakeHub, count: int) -> None:
    """Wait until `count` connections have received bytes, then continue."""
    while len(fake.bodies()) < count:  # noqa: ASYNC110 - the server is in threads of its own
        await asyncio.sleep(0.001)
    fake.go.set()


# -- connections


async def test_connections_share_a_file(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    fake.always = "part:100"  # nobody is done before all have begun
    seen: list[TransferProgress] = []
    model, _ = await asyncio.gather(ensure(entry, store, seen.append, hub=hub), together(fake, 4))
    assert model.path.read_bytes() == fake.content
    assert fake.sent == len(fake.content)
    assert sum(request.method == "HEAD" for request in fake.requests) == 1
    loading = [progress for progress in seen if progress.stage == TransferStage.DOWNLOADING]
    done = [progress.done for progress in loading]
    assert done == sorted(done)
    assert loading[-1].by_source == ((fake.endpoint, len(fake.content)),)


@pytest.mark.parametrize("seed", range(8))
async def test_download_survives_any_mix_of_faults(seed: int, fake: FakeHub, entry: CatalogEntry, store: Store) -> None:
    rng = Random(seed)
    kinds: list[Callable[[], str]] = [
        lambda: f"cut:{rng.randrange(1, 20_000)}",
        lambda: f"reset:{rng.randrange(1, 20_000)}",
        lambda: f"stall:{rng.randrange(1, 20_000)}",
        lambda: "status:429:0",
        lambda: "status:503",
        lambda: "status:403",
        lambda: "no-range",
        lambda: "other-range",
        lambda: "",
    ]
    fake.faults = [rng.choice(kinds)() for _ in range(20)]
    fake.head_faults = [rng.choice(["", "status:503", "status:429:0"]) for _ in range(4)]
    settings = HubSettings(endpoint=fake.endpoint, decide_within=20.0, stall=0.2, tries=30, pause=0.001)
    model = await ensure(entry, store, ignore, hub=Hub(settings))
    assert model.path.read_bytes() == fake.content, f"seed {seed}"


async def test_server_without_ranges_is_read_by_one_connection(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.always = "no-range"
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content


@pytest.mark.parametrize("have", [1, CHUNK, 100_000])
async def test_server_that_stops_ranges_causes_no_wrong_byte(
    have: int, fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    """Existing bytes are skipped; damage would be found by the digest."""
    store.prepare()
    store.partial_path(entry.files[0]).write_bytes(fake.content[:have])
    fake.always = "no-range"
    seen: list[TransferProgress] = []
    model = await ensure(entry, store, seen.append, hub=hub)
    assert model.path.read_bytes() == fake.content
    given = max(dict(progress.by_source).get(fake.endpoint, 0) for progress in seen)
    assert given == len(fake.content) - have


async def test_expired_signed_url_is_looked_up_again(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.lifetime = 2
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content
    assert fake.sent == len(fake.content)
    assert sum(request.method == "HEAD" for request in fake.requests) > 1


async def test_stalled_connection_is_left_behind(
    fake: FakeHub, entry: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timeout is an hour; other connections take over its range."""
    monkeypatch.setattr(assembly_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(assembly_module, "LOOK_AGAIN_SECONDS", 0.05)
    fake.faults = ["stall:5000"]
    hub = Hub(HubSettings(endpoint=fake.endpoint, decide_within=20.0, stall=3600.0, pause=0.001))
    async with asyncio.timeout(60):
        model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content
    # A connection that this machine holds up for so long is left behind, too.
    assert fake.sent - len(fake.content) <= 2 * CHUNK


# -- peers


class Peers:
    """Peers that write these chunks, then do `then`; they claim `digests`."""

    def __init__(self, content: bytes, chunks: range, digests: bytes | None = None, then: str = "fail") -> None:
        self.content = content
        self.chunks = chunks
        self.digests = digests
        self.then = then
        self.disowned = 0

    async def download_into(self, partial: PartialFile) -> None:
        partial.expected = self.digests
        while piece := partial.claim("peer", 1, lambda chunk: chunk in self.chunks):
            chunk = piece.position // partial.chunk_bytes
            begin, end = partial.span(chunk)
            data = self.content[begin:end]

            def put(stop: object, chunk: int = chunk, data: bytes = data) -> None:
                partial.write_chunk("peer", chunk, data)

            await in_thread(put, "put")
            partial.release(piece)
        if self.then == "hang":
            await asyncio.Event().wait()
        if not partial.complete:
            raise DownloadFailed("No peer has more.")

    def reject_claims(self, partial: PartialFile) -> bool:
        self.disowned += 1
        return False


async def test_peers_serve_a_file_without_the_hub(fake: FakeHub, store: Store) -> None:
    file = ModelFile("model.gguf", len(fake.content), fake.sha256)
    seen: list[TransferProgress] = []
    peers = Peers(fake.content, range(100))
    model = await ensure(Manifest("Model", (file,)), store, seen.append, peers=peers)
    assert model.path.read_bytes() == fake.content
    assert model.name == "Model"
    shares = [progress.by_source for progress in seen if progress.by_source]
    assert shares[-1] == (("peer", len(fake.content)),)
    assert not fake.requests


async def test_download_fails_when_no_source_has_the_file(fake: FakeHub, store: Store) -> None:
    file = ModelFile("model.gguf", len(fake.content), fake.sha256)
    with pytest.raises(DownloadFailed, match="No peer has more"):
        await ensure(Manifest("Model", (file,)), store, ignore, peers=Peers(fake.content, range(5)))
    assert store.resumable_bytes(file) == 5 * CHUNK
    with pytest.raises(DownloadFailed, match="No source for it is known"):
        await ensure(Manifest("Model", (file,)), store, ignore)


async def test_hub_adds_what_peers_lack(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    model = await ensure(entry, store, ignore, hub=hub, peers=Peers(fake.content, range(3, 13)))
    assert model.path.read_bytes() == fake.content
    assert fake.sent == len(fake.content) - 10 * CHUNK


async def test_hub_joins_slow_peers(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "HEAD_START_SECONDS", 0.05)
    async with asyncio.timeout(60):
        model = await ensure(entry, store, ignore, hub=hub, peers=Peers(fake.content, range(2), then="hang"))
    assert model.path.read_bytes() == fake.content


async def test_peers_go_on_without_the_hub(fake: FakeHub, entry: CatalogEntry, store: Store) -> None:
    away = Hub(HubSettings(endpoint="http://127.0.0.1:9", decide_within=5.0))
    model = await ensure(entry, store, ignore, hub=away, peers=Peers(fake.content, range(100)))
    assert model.path.read_bytes() == fake.content


async def test_known_digests_limit_the_repair_to_the_wrong_chunk(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.faults = ["wrong:100"]
    peers = Peers(fake.content, range(0), digests_of(fake.content))
    model = await ensure(entry, store, ignore, hub=hub, peers=peers)
    assert model.path.read_bytes() == fake.content
    assert fake.sent - len(fake.content) <= CHUNK
    assert not peers.disowned


async def test_peers_with_false_digests_are_rejected(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    """Chunks match the false claims, the file does not: the hub alone serves it, from the start."""
    lie = bytes(CHUNK) + fake.content[CHUNK:]
    peers = Peers(lie, range(3), digests_of(lie)[:-32] + bytes.fromhex(fake.sha256))
    feed, peers.download_into = peers.download_into, None  # type: ignore[method-assign, assignment]

    async def once(partial: PartialFile) -> None:
        if peers.disowned:
            raise DownloadFailed("No peer is left.")
        await feed(partial)

    peers.download_into = once  # type: ignore[method-assign]
    model = await ensure(entry, store, ignore, hub=hub, peers=peers)
    assert model.path.read_bytes() == fake.content
    assert peers.disowned == 1


async def test_chunk_rejected_before_the_end_of_its_source_is_seen_is_downloaded_again(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers claim a false digest of the last chunk: it is rejected once everything has arrived."""

    async def never(partial: PartialFile) -> None:
        await asyncio.Event().wait()

    fetch = hub.fetch

    async def ends_late(source: HubSource, file: ModelFile, partial: PartialFile) -> None:
        await fetch(source, file, partial)
        await partial.changed(0.5, complete=False)

    monkeypatch.setattr(fetcher, "_until_complete", never)
    monkeypatch.setattr(hub, "fetch", ends_late)
    peers = Peers(fake.content, range(0), digests_of(fake.content)[:-32] + bytes(32))
    async with asyncio.timeout(60):
        model = await ensure(entry, store, ignore, hub=hub, peers=peers)
    assert model.path.read_bytes() == fake.content


async def test_chunk_rejected_while_its_source_is_ended_is_downloaded_again(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, after the file was found complete, and its sources were told to end."""
    fetch, reject, ending = hub.fetch, PartialFile.reject_chunk, threading.Event()

    def reject_late(partial: PartialFile, chunk: int) -> None:
        assert ending.wait(30)
        reject(partial, chunk)

    async def stays(source: HubSource, file: ModelFile, partial: PartialFile) -> None:
        try:
            await fetch(source, file, partial)
            await asyncio.Event().wait()
        finally:
            ending.set()
            await partial.changed(0.5, complete=False)

    monkeypatch.setattr(PartialFile, "reject_chunk", reject_late)
    monkeypatch.setattr(hub, "fetch", stays)
    peers = Peers(fake.content, range(0), digests_of(fake.content)[:-32] + bytes(32))
    async with asyncio.timeout(60):
        model = await ensure(entry, store, ignore, hub=hub, peers=peers)
    assert model.path.read_bytes() == fake.content


# -- digests of chunks


async def test_chunk_digests_of_a_downloaded_file_are_known(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    file = entry.files[0]
    assert store.chunk_digests(file) is None
    await ensure(entry, store, ignore, hub=hub)
    assert store.chunk_digests(file) == digests_of(fake.content)
    assert list(store.verified_files()) == [(file.sha256, store.path(file))]


async def test_chunk_digests_of_a_verified_file_are_computed(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    file = entry.files[0]
    path = (await ensure(entry, store, ignore, hub=hub)).path
    kept = store.folder / ".mesh-llm" / "chunks" / file.sha256
    kept.write_bytes(b"x" * 31)
    assert store.chunk_digests(file) is None
    kept.unlink()
    assert await chunk_digests(file, store) == digests_of(fake.content)
    assert kept.exists()
    kept.unlink()
    path.write_bytes(bytes(len(fake.content)))
    store.record(path, file.sha256)
    with pytest.raises(DownloadFailed, match="has changed"):
        await chunk_digests(file, store)
    assert not store.is_verified(file)
