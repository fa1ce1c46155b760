"""Downloads from the hub with its real client, against a local server with injected faults."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest
from fake_hub import FakeHub
from gguf_samples import write_parts

from meshllm.errors import DownloadFailed
from meshllm.models.catalog.catalog import CatalogEntry
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import Manifest
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure, resumable_bytes
from meshllm.models.transfer.progress import TransferProgress, TransferStage
from meshllm.tasks import Owner


def ignore(progress: TransferProgress) -> None:
    pass


async def test_ensure_downloads_and_verifies_from_the_hub(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    seen: list[TransferProgress] = []
    model = await ensure(entry, store, seen.append, hub=hub)
    assert model.path.read_bytes() == fake.content
    assert (model.name, model.size, model.digest) == ("Model", len(fake.content), fake.sha256)
    assert (model.header.architecture, model.context_length, model.chat_template) == ("llama", 512, None)
    stages = [progress.stage for progress in seen]
    assert stages[0] == TransferStage.CONNECTING
    assert stages[-1] == TransferStage.READY
    assert TransferStage.DOWNLOADING in stages
    assert TransferStage.VERIFYING in stages
    assert all(0 <= progress.done <= progress.total for progress in seen)
    assert not store.partial_path(entry.files[0]).exists()


async def test_second_ensure_makes_no_request_and_reads_nothing(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    await ensure(entry, store, ignore, hub=hub)
    before = len(fake.requests)
    seen: list[TransferProgress] = []
    await ensure(entry, store, seen.append, hub=hub)
    assert len(fake.requests) == before
    assert [progress.stage for progress in seen] == [TransferStage.READY]


async def test_token_is_sent_to_the_hub_only(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    await ensure(entry, store, ignore, hub=hub)
    tokens = {(request.method, request.host.split(":")[0]): request.authorization for request in fake.requests}
    assert tokens == {("HEAD", "127.0.0.1"): "Bearer hf_secret", ("GET", "localhost"): ""}


@pytest.mark.parametrize(
    "faults",
    [
        ["cut:1000"],
        ["reset:70000"],
        ["cut:1", "reset:2", "cut:3", "reset:4", "cut:5", "reset:6", "cut:7"],
        ["status:503"],
        ["status:429:0", "status:500", "cut:100000", "status:403"],
        ["cut:50000", "no-range"],
        ["cut:50000", "other-range"],
        ["cut:50000", "wrong"],
    ],
)
async def test_download_resumes_after_faults(
    faults: list[str], fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.faults = list(faults)
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content
    assert not fake.faults


async def test_download_requests_no_byte_twice(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    fake.faults = ["cut:10000"] * 12
    await ensure(entry, store, ignore, hub=hub)
    assert fake.sent == len(fake.content)
    last = len(fake.content) - 1
    assert [request.range for request in fake.bodies()[:3]] == ["", f"bytes=10000-{last}", f"bytes=20000-{last}"]


async def test_download_notices_a_stall(fake: FakeHub, entry: CatalogEntry, store: Store) -> None:
    fake.faults = ["stall:1000"]
    hub = Hub(HubSettings(endpoint=fake.endpoint, decide_within=20.0, stall=0.2, pause=0.001))
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content
    assert fake.bodies()[-1].range == f"bytes=1000-{len(fake.content) - 1}"


async def test_download_fails_after_enough_failures_without_progress(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.faults = ["cut:1000"] + ["status:503"] * 50
    with pytest.raises(DownloadFailed, match=r"5 times in a row") as failure:
        await ensure(entry, store, ignore, hub=hub)
    assert str(store.path(entry.files[0])) in failure.value.advice
    assert store.resumable_bytes(entry.files[0]) == resumable_bytes(entry, store) == 1000
    fake.faults = []
    await ensure(entry, store, ignore, hub=hub)
    assert fake.sent == len(fake.content)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ({"faults": ["more"]}, "more bytes"),
        ({"etag": "d" * 64}, "another size or sha256"),
        ({"size": 5}, "another size or sha256"),
        ({"path": "elsewhere.gguf"}, "has no file"),
        ({"head_faults": ["status:401"]}, "HF_TOKEN"),
        ({"head_faults": ["status:403"]}, "HF_TOKEN"),
    ],
)
async def test_permanent_errors_are_not_retried(
    mood: dict[str, object], words: str, fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    for name, value in mood.items():
        setattr(fake, name, value)
    with pytest.raises(DownloadFailed, match=words):
        await ensure(entry, store, ignore, hub=hub)
    assert len(fake.requests) <= 2
    assert not store.path(entry.files[0]).exists()


async def test_wrong_bytes_are_downloaded_again_once(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.always = "wrong"
    with pytest.raises(DownloadFailed, match="another sha256"):
        await ensure(entry, store, ignore, hub=hub)
    assert len(fake.bodies()) == 2
    assert store.resumable_bytes(entry.files[0]) == 0
    assert not store.path(entry.files[0]).exists()
    fake.faults = ["wrong:100"]
    fake.always = ""
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content


async def test_invalid_endpoint_fails(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    for address in ("http://[bad/x", "http://localhost:notaport/x", "file:///etc/passwd"):
        fake.address = address
        with pytest.raises(DownloadFailed, match=r"could not be fetched\. (http:\S+ cannot|The hub sent)"):
            await ensure(entry, store, ignore, hub=hub)


async def test_busy_hub_is_asked_again_after_retry_after(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.head_faults = ["status:503", "status:429:0"]
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content


async def test_silent_hub_fails_within_its_deadline(fake: FakeHub, entry: CatalogEntry, store: Store) -> None:
    fake.head_faults = ["hang"]
    hub = Hub(HubSettings(endpoint=fake.endpoint, decide_within=0.2))
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(entry, store, ignore, hub=hub)
    assert len(fake.requests) == 1


async def test_closed_port_fails(entry: CatalogEntry, store: Store, unused_tcp_port: int) -> None:
    hub = Hub(HubSettings(endpoint=f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await ensure(entry, store, ignore, hub=hub)


async def test_cancelled_download_resumes(fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store) -> None:
    """Twenty cancellations at random places, where the hub stalls."""
    places, file, rng = [], entry.files[0], Random(7)
    for _ in range(20):
        place = store.resumable_bytes(file) + rng.randrange(1, len(fake.content) // 25)
        fake.faults = [f"stall:{place - store.resumable_bytes(file)}"]
        await cancelled_at(place, entry, store, hub)
        places.append(place)
        assert store.resumable_bytes(file) == place
        assert not store.path(file).exists()
    assert places == sorted(places)
    model = await ensure(entry, store, ignore, hub=hub)
    assert model.path.read_bytes() == fake.content
    assert fake.sent == len(fake.content)


async def cancelled_at(place: int, entry: CatalogEntry, store: Store, hub: Hub) -> None:
    """Start a download and cancel it after `place` bytes."""
    there = asyncio.Event()

    def report(progress: TransferProgress) -> None:
        if progress.stage == TransferStage.DOWNLOADING and progress.done == place:
            there.set()

    owner = Owner("test")
    task = owner.start(ensure(entry, store, report, hub=hub), "ensure")
    async with asyncio.timeout(30):
        await there.wait()
    await owner.close()
    assert task.cancelled()


async def test_cancelled_download_writes_nothing_more(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    fake.faults = ["stall:5000"]
    await cancelled_at(5000, entry, store, hub)
    for thread in [thread for thread in threading.enumerate() if thread.name == "hub-stream"]:
        await asyncio.to_thread(thread.join, 20)  # its thread ends although the hub is still silent
        assert not thread.is_alive()
    fake.gone.set()  # the hub goes on and sends another part
    assert store.resumable_bytes(entry.files[0]) == 5000


async def test_concurrent_downloads_of_one_model_request_it_once(
    fake: FakeHub, hub: Hub, entry: CatalogEntry, store: Store
) -> None:
    seen: list[TransferProgress] = []
    models = await asyncio.gather(*(ensure(entry, store, seen.append, hub=hub) for _ in range(4)))
    assert len({model.path for model in models}) == 1
    assert fake.sent == len(fake.content)
    assert TransferStage.WAITING in [progress.stage for progress in seen]


async def test_model_of_two_files_is_downloaded(fake: FakeHub, hub: Hub, store: Store, tmp_path: Path) -> None:
    fake.others = {path.name: path.read_bytes() for path in write_parts(tmp_path / "made", "m")}
    manifest = Manifest("Split", tuple(fake.manifest_file(path) for path in fake.others))
    model = await ensure(manifest, store, ignore, hub=hub)
    assert model.size == sum(map(len, fake.others.values()))
    assert model.files == tuple(store.folder / name for name in fake.others)
    assert [path.read_bytes() for path in model.files] == list(fake.others.values())


async def test_probe_reports_reachability(fake: FakeHub, hub: Hub, unused_tcp_port: int) -> None:
    await hub.probe(within=20.0)
    with pytest.raises(DownloadFailed, match="cannot be reached"):
        await Hub(HubSettings(endpoint=f"http://127.0.0.1:{unused_tcp_port}")).probe(within=20.0)
    fake.head_faults = ["hang"]
    with pytest.raises(DownloadFailed, match=r"within 0\.1 s"):
        await hub.probe(within=0.1)


OFFLINE = """
import asyncio
from meshllm.errors import DownloadFailed
from meshllm.models.hub.hub import Hub
hub = Hub()
print(hub.endpoint)
try:
    asyncio.run(hub.probe(within=20))
except DownloadFailed as failure:
    print(failure)
"""


def test_environment_variables_are_honoured(fake: FakeHub) -> None:
    """HF_ENDPOINT and HF_HUB_OFFLINE, which the hub's client reads when it is loaded."""
    environment = {"HF_ENDPOINT": fake.endpoint + "/", "HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    endpoint, reason = done.stdout.splitlines()
    assert endpoint == fake.endpoint
    assert "HF_HUB_OFFLINE" in reason
    assert not fake.requests
