"""Interrupts one download at random places while the hub has faults, and counts repeated bytes.

Half of the interruptions cancel the download, the others kill its process (kill -9).
`python tests/models/interruptions.py --seed 5` prints the figures of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from fake_hub import BUFFER_BYTES, FakeHub, running
from gguf_samples import write_sample

from meshllm.errors import DownloadFailed
from meshllm.models.hub import stream
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import HubSource, Manifest, ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure
from meshllm.models.transfer.partial_file import CHUNK_BYTES, PartialFile
from meshllm.tasks import Owner

PART_BYTES = CHUNK_BYTES
"""What may be fetched twice in all: one part, which is one chunk."""

# Of a hundred answers so many are faulty in each of these ways.
FAULTS = {"cut": 6, "reset": 6, "stall": 3, "status:429:0": 4, "status:503": 4, "no-range": 1, "other-range": 1}


@dataclass(frozen=True)
class Figures:
    """Bytes of the file, bytes sent, and repeated bytes besides wrong chunks."""

    seed: int
    size: int
    sent: int
    twice: int
    wrong_chunks: int
    cancelled: int
    killed: int
    faults: dict[str, int]


class ClaimingPeers:
    """Peers without data that claim the chunk digests."""

    def __init__(self, digests: bytes) -> None:
        self.digests = digests

    async def download_into(self, partial: PartialFile) -> None:
        partial.expected = self.digests
        raise DownloadFailed("No peer has any of it.")

    def reject_claims(self, partial: PartialFile) -> bool:
        return False


def measure(folder: Path, seed: int, *, size: int = 96 << 20, times: int = 20, wrong: int = 0) -> Figures:
    """Download a file of some `size` bytes into `folder`, interrupted so often; so many answers begin with wrong bytes.

    Raises AssertionError if the file is not right afterwards.
    """
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    content = write_sample(folder / "made.gguf").read_bytes()
    content += rng.randbytes(size - len(content))
    faults = [_fault(rng) for _ in range(2000)]
    for place in rng.sample(range(20), wrong):
        faults[place] = "wrong:1000"
    with _small_buffers(), running(FakeHub(content, faults=list(faults), pause=0.0005)) as hub:
        job = _Job(hub.endpoint, len(content), hub.sha256, str(folder / "models"), wrong > 0, _digests(content).hex())
        places = sorted(rng.sample(range(1, int(size * 0.95)), times))
        kills = set(rng.sample(range(times), times // 2))
        for number, place in enumerate(places):
            if number in kills:
                _killed(job, hub, place)
            else:
                asyncio.run(_cancelled(job, hub, place))
        asyncio.run(_fetch(job))
        used = faults[: len(faults) - len(hub.faults)]
    found = (folder / "models" / "model.gguf").read_bytes()
    assert found == content, f"seed {seed}: the file is not right"
    kinds = {kind: sum(fault.startswith(kind) for fault in used) for kind in (*FAULTS, "wrong")}
    twice = hub.sent - len(content) - kinds["wrong"] * PART_BYTES
    return Figures(seed, len(content), hub.sent, twice, kinds["wrong"], times - len(kills), len(kills), kinds)


@contextlib.contextmanager
def _small_buffers() -> Iterator[None]:
    """Keep the receive buffers small, so that little is unread at an interruption, however slow this machine is."""
    stream.RECEIVE_BUFFER_BYTES = BUFFER_BYTES
    try:
        yield
    finally:
        stream.RECEIVE_BUFFER_BYTES = 0


@dataclass(frozen=True)
class _Job:
    endpoint: str
    size: int
    sha256: str
    folder: str
    claimed: bool
    digests: str


async def _fetch(job: _Job) -> None:
    source = HubSource("org/repo", "c" * 40, "model.gguf")
    manifest = Manifest("Model", (ModelFile("model.gguf", job.size, job.sha256, (source,)),))
    # The hub is patient enough for a slow machine, and fails far more often than any real one.
    hub = Hub(HubSettings(job.endpoint, decide_within=60.0, stall=1.0, tries=100, pause=0.001))
    peers = ClaimingPeers(bytes.fromhex(job.digests)) if job.claimed else None
    await ensure(manifest, Store(Path(job.folder)), lambda progress: None, hub=hub, peers=peers)


async def _cancelled(job: _Job, hub: FakeHub, place: int) -> None:
    loop = asyncio.get_running_loop()
    owner = Owner("interrupted")
    task = owner.start(_fetch(job), "fetch")
    hub.alarm = (place, lambda: loop.call_soon_threadsafe(task.cancel))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    hub.alarm = None
    await owner.close()


def _killed(job: _Job, hub: FakeHub, place: int) -> None:
    child = subprocess.Popen([sys.executable, __file__, "--job", json.dumps(asdict(job))])
    hub.alarm = (place, child.kill)
    child.wait()
    hub.alarm = None


def _fault(rng: Random) -> str:
    lot = rng.randrange(100)
    for kind, share in FAULTS.items():
        if lot < share:
            return f"{kind}:{rng.randrange(1, 3 << 20)}" if kind in ("cut", "reset", "stall") else kind
        lot -= share
    return ""


def _digests(content: bytes) -> bytes:
    whole, found = hashlib.sha256(), b""
    for at in range(0, len(content), CHUNK_BYTES):
        whole.update(content[at : at + CHUNK_BYTES])
        found += whole.digest()
    return found


def main() -> None:
    """A run with its figures, or (`--job`) the download to be killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wrong", type=int, default=0)
    parser.add_argument("--job")
    options = parser.parse_args()
    if options.job:
        with _small_buffers():
            asyncio.run(_fetch(_Job(**json.loads(options.job))))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(measure(Path(folder), options.seed, wrong=options.wrong))))


if __name__ == "__main__":
    main()
