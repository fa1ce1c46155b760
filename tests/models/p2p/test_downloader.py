"""Downloads from peers: correct ones, and peers with wrong data, stalls, crashes and invalid frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from swarm_rig import CHUNK, content_of, digests_of, false_digests, fetch, rig

from meshllm.errors import DownloadFailed
from meshllm.models.p2p import downloader, peer_connection
from meshllm.models.p2p.swarm import SwarmSource
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.tasks import Owner
from meshllm.wire.mesh import files as w


async def test_download_uses_three_peers_at_once(tmp_path: Path) -> None:
    content = content_of(40)
    async with rig(tmp_path) as place:
        for name in "abc":
            await place.uploader(name, content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.complete
        assert partial.path.read_bytes() == content
        assert partial.expected == digests_of(content)
        assert len(partial.by_source) == 3
        assert sum(uploader.uploaded_bytes for uploader in place.uploaders) == len(content)
        assert place.swarm.banned == {}
        assert place.swarm.downloads() == []


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for peers that never appear."""
    monkeypatch.setattr(downloader, "NO_PEER_SECONDS", 0.0)


def wrong_chunk(number: int | None) -> Callable[[w.Request, bytes], bytes | None]:
    """Sends wrong bytes for one chunk, or for all."""

    def spoil(request: w.Request, answer: bytes) -> bytes:
        wrong = isinstance(request, w.ChunkRequest) and number in (None, request.chunk)
        return answer[:-1] + bytes([answer[-1] ^ 1]) if wrong else answer

    return spoil


def honest(request: w.Request, answer: bytes) -> bytes:
    return answer


async def test_peer_with_a_wrong_chunk_is_banned(tmp_path: Path) -> None:
    content = content_of(30)
    async with rig(tmp_path) as place:
        liar = await place.liar("liar", content, wrong_chunk(1))
        partial = place.partial(content)
        source = place.swarm.source("Model")
        with pytest.raises(DownloadFailed, match="chunk 1 does not match its claimed digest"):
            await fetch(source, partial)
        assert "chunk 1 does not match its claimed digest" in place.swarm.banned[liar]
        assert not partial.has(1)
        await place.uploader("honest", content)
        await fetch(source, partial)
        assert partial.path.read_bytes() == content
        assert place.site.opened.count(liar.id) == 1


async def test_wrong_peer_among_correct_ones_only_costs_time(tmp_path: Path) -> None:
    content = content_of(60)
    async with rig(tmp_path) as place:
        liar = await place.liar("liar", content, wrong_chunk(None))
        for name in "ab":
            await place.uploader(name, content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content
        assert list(place.swarm.banned) == [liar]


async def test_bans_hold_for_all_files_of_the_run(tmp_path: Path) -> None:
    content = content_of(5)
    async with rig(tmp_path) as place:
        liar = await place.liar("liar", content, wrong_chunk(0))
        with pytest.raises(DownloadFailed):
            await fetch(place.swarm.source("Model"), place.partial(content))
        place.site.opened.clear()
        with pytest.raises(DownloadFailed, match="No other node"):
            await place.swarm.source("Other").download_into(place.partial(content))
        assert place.site.opened == []
        assert list(place.swarm.banned) == [liar]


async def test_false_digest_list_is_rejected_and_correct_chunks_kept(tmp_path: Path) -> None:
    content = content_of(20)
    false = content[: 7 * CHUNK] + bytes(CHUNK) + content[8 * CHUNK :]
    async with rig(tmp_path) as place:
        # Two liars agree, so that their list is the one that most vouch for. What they send fits it, to the last chunk.
        liars = [await place.liar(name, false, honest, false_digests(false, content)) for name in ("one", "two")]
        truthful, _ = await place.uploader("honest", content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert set(place.swarm.banned) == set(liars)
        assert truthful not in place.swarm.banned
        assert partial.path.read_bytes() == content
        assert partial.expected == digests_of(content)
        # The chunk they lied about, and the last, by which each of them was found out.
        assert place.uploaders[0].uploaded_bytes <= 2 * CHUNK


async def test_download_fails_when_all_peers_are_wrong(tmp_path: Path) -> None:
    content = content_of(4)
    false = bytes(len(content))
    async with rig(tmp_path) as place:
        liar = await place.liar("liar", false, honest, false_digests(false, content))
        partial = place.partial(content)
        source = place.swarm.source("Model")
        with pytest.raises(DownloadFailed, match="chunk 3 does not match its claimed digest"):
            await fetch(source, partial)
        assert list(place.swarm.banned) == [liar]
        # Nobody is left who has claimed for anything.
        assert not source.reject_claims(partial)
        assert not place.swarm.source("Other").reject_claims(partial)


async def test_reject_claims_switches_to_another_list(tmp_path: Path) -> None:
    content = content_of(4)
    async with rig(tmp_path) as place:
        uploader, _ = await place.uploader("uploader", content)
        partial = place.partial(content)
        source = place.swarm.source("Model")
        await fetch(source, partial)
        assert not source.reject_claims(partial)
        assert partial.expected is None
        assert "do not match the file" in place.swarm.banned[uploader]


async def test_peer_with_another_list_is_used_when_the_first_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloader, "DISAGREE_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(downloader, "RETRY_SECONDS", 0.01)
    content = content_of(12)
    false = content[: 3 * CHUNK] + bytes(CHUNK) + content[4 * CHUNK :]
    async with rig(tmp_path) as place:

        def hang_up(request: w.Request, answer: bytes) -> bytes | None:
            return None if isinstance(request, w.ChunkRequest) and request.chunk > 0 else answer

        for name in ("one", "two"):
            await place.liar(name, false, hang_up, false_digests(false, content))
        await place.uploader("honest", content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.expected == digests_of(content)
        assert partial.path.read_bytes() == content


async def test_lost_peer_only_costs_time(tmp_path: Path) -> None:
    content = content_of(60)
    async with rig(tmp_path) as place:
        dying = await place.liar(
            "dying", content, lambda request, answer: None if request == w.ChunkRequest(5) else answer
        )
        await place.uploader("living", content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content
        assert dying not in place.swarm.banned


async def test_half_a_chunk_is_not_used(tmp_path: Path) -> None:
    content = content_of(10)
    async with rig(tmp_path) as place:
        # All it sends of one is its half, and then nothing: what it was to bring is taken over.
        def half(request: w.Request, answer: bytes) -> bytes:
            return answer[: len(answer) // 2] if request == w.ChunkRequest(2) else answer

        stalling = await place.liar("stalling", content, half)
        await place.uploader("living", content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content
        assert stalling not in place.swarm.banned


async def test_stalled_peer_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_connection.PeerConnection.__init__, "__kwdefaults__", {"stall": 0.05})
    monkeypatch.setattr(downloader, "RETRY_SECONDS", 0.001)
    content = content_of(3)
    async with rig(tmp_path) as place:
        stalling = await place.liar("stalling", content, lambda request, answer: b"")
        with pytest.raises(DownloadFailed, match="sent nothing for 0 seconds"):
            await fetch(place.swarm.source("Model"), place.partial(content))
        assert place.site.opened == [stalling.id] * downloader.MAX_FAILURES
        assert place.swarm.banned == {}


NONSENSE = {
    "garbage": lambda request, answer: b"\xff" * 50,
    "another chunk": lambda request, answer: (
        w.header(w.FileFrameKind.CHUNK, request.chunk + 1, len(answer) - w.HEADER.size) + answer[w.HEADER.size :]
        if isinstance(request, w.ChunkRequest)
        else answer
    ),
    "too long": lambda request, answer: (
        w.header(w.FileFrameKind.CHUNK, request.chunk, 1 << 31) if isinstance(request, w.ChunkRequest) else answer
    ),
    "too short": lambda request, answer: (
        w.header(w.FileFrameKind.CHUNK, request.chunk, 5) + b"short" if isinstance(request, w.ChunkRequest) else answer
    ),
    "unasked": lambda request, answer: answer + answer,
    "a list for a chunk": lambda request, answer: (
        w.encode_answer(w.ChunkListing(1, 1, bytes(32))) if isinstance(request, w.ChunkRequest) else answer
    ),
    "another size": lambda request, answer: (
        w.encode_answer(w.ChunkListing(CHUNK, CHUNK, bytes(32))) if isinstance(request, w.HaveRequest) else answer
    ),
    "a list of another file": lambda request, answer: (
        answer[:-1] + bytes([answer[-1] ^ 1]) if isinstance(request, w.HaveRequest) else answer
    ),
    "a huge list": lambda request, answer: w.header(w.FileFrameKind.LISTING, 0, (1 << 32) - 1),
    "half a list": lambda request, answer: w.header(w.FileFrameKind.LISTING, 0, 20) + bytes(20),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_peer_with_invalid_frames_is_banned(tmp_path: Path, name: str) -> None:
    content = content_of(20)
    async with rig(tmp_path) as place:
        fool = await place.liar("fool", content, NONSENSE[name])
        with pytest.raises(DownloadFailed) as failure:
            await fetch(place.swarm.source("Model"), place.partial(content))
        assert list(place.swarm.banned) == [fool]
        assert place.swarm.banned[fool] in failure.value.message
        await place.uploader("honest", content)
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content


async def interrupted(source: SwarmSource, partial: PartialFile, count: int) -> None:
    """Download until so many bytes have arrived."""
    loop, reached, owner = asyncio.get_running_loop(), asyncio.Event(), Owner("interrupted")

    def heard(there: int) -> None:
        if there >= count:
            loop.call_soon_threadsafe(reached.set)

    partial.on_arrival = heard
    owner.start(source.download_into(partial), "feed")
    await reached.wait()
    await owner.close()
    partial.on_arrival = None


async def test_interrupted_download_resumes(tmp_path: Path) -> None:
    content = content_of(50)
    async with rig(tmp_path) as place:
        await place.uploader("uploader", content)
        for chunks in (5, 20, 35):
            partial = place.partial(content)
            await interrupted(place.swarm.source("Model"), partial, chunks * CHUNK)
            partial.close()
        partial = place.partial(content)
        there, sent = partial.arrived, place.uploaders[0].uploaded_bytes
        assert there >= 35 * CHUNK
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content
        # What was there is not asked for again; what was under way when it was interrupted may come a little later.
        assert place.uploaders[0].uploaded_bytes - sent <= len(content) - there + downloader.MAX_OUTSTANDING * CHUNK


async def test_peers_that_appear_later_are_used(tmp_path: Path) -> None:
    content = content_of(40)
    async with rig(tmp_path) as place:
        first, _ = await place.uploader("first", content)
        place.site.vanish(first)
        place.site.settling = True
        partial = place.partial(content)
        owner = Owner("test")
        feeding = owner.start(place.swarm.source("Model").download_into(partial), "feed")
        await place.site.waited_for.wait()
        assert place.site.opened == []
        place.site.appear(first)
        await feeding
        await owner.close()
        assert partial.path.read_bytes() == content


async def test_download_fails_without_peers(tmp_path: Path) -> None:
    content = content_of(2)
    async with rig(tmp_path) as place:
        with pytest.raises(DownloadFailed, match="No other node of the mesh could be asked"):
            await fetch(place.swarm.source("Model"), place.partial(content))


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (w.FileRefusal(w.FileRefusalReason.ABSENT), "does not have the file"),
        (w.FileRefusal(w.FileRefusalReason.NOT_SHARED), "uploads are disabled there"),
        (w.FileRefusal(w.FileRefusalReason.NOT_UNDERSTOOD), "another version"),
    ],
)
async def test_refusal_reason_is_reported(tmp_path: Path, refusal: w.FileRefusal, words: str) -> None:
    content = content_of(2)
    async with rig(tmp_path) as place:
        _, index = await place.uploader("uploader", content)
        index.refusals = [refusal]
        with pytest.raises(DownloadFailed, match=words):
            await fetch(place.swarm.source("Model"), place.partial(content))
        assert place.swarm.banned == {}


async def test_peer_that_hashes_its_file_is_asked_again(tmp_path: Path) -> None:
    content = content_of(2)
    async with rig(tmp_path) as place:
        _, index = await place.uploader("uploader", content)
        index.refusals = [w.FileRefusal(w.FileRefusalReason.PREPARING, 50, 1)]
        partial = place.partial(content)
        await fetch(place.swarm.source("Model"), partial)
        assert partial.path.read_bytes() == content
        assert len(place.site.opened) == 2


async def test_full_disk_ends_the_download(tmp_path: Path) -> None:
    content = content_of(5)
    async with rig(tmp_path) as place:
        await place.uploader("uploader", content)
        partial = place.partial(content)

        def full(source: str, chunk: int, data: bytes | memoryview, uploader: str) -> None:
            raise OSError(28, "No space left on device")

        partial.write_chunk = full  # type: ignore[method-assign]
        with pytest.raises(OSError, match="No space left"):
            await fetch(place.swarm.source("Model"), partial)
        assert place.swarm.downloads() == []


def test_digest_lists_choose_the_most_claimed_list() -> None:
    one, two, three = (downloader.SwarmPeer(name * 64, name) for name in "abc")
    lists = downloader.DigestLists()
    assert lists.choose() is None
    lists.add(one, b"x")
    assert lists.choose() == b"x"
    lists.add(two, b"y")
    lists.add(three, b"y")
    assert lists.choose() == b"x", "what is chosen stays while somebody who vouches for it is there"
    lists.remove_source(one)
    assert lists.choose() == b"y"
    assert (lists.claims(two), lists.claims(one)) == (True, False)
    assert lists.peer("b" * 64) is two
    lists.withdraw(two)
    assert (lists.chosen, lists.peer("b" * 64)) == (b"y", None)
    lists.add(two, b"y")
    assert lists.reject_chosen() == [three, two]
    assert lists.chosen == b"x"
    lists.withdraw(one)
    assert lists.chosen is None
    assert lists.reject_chosen() == []
