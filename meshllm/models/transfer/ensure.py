"""Ensures that a model is on this disk: looks up its files, searches the disk, downloads and verifies missing ones.

Invariants: no unverified file gets its final name; files of other programs and of the user are used in place and never
changed; two callers that want the same file download it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meshllm.errors import DownloadFailed, UnknownModel
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.catalog.names import part_of
from meshllm.models.hub.hub import Hub
from meshllm.models.hub.lookup import cached, choose, look_up
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile
from meshllm.models.hub.manifest_cache import is_file_name
from meshllm.models.library import other_apps
from meshllm.models.library.digest_index import SHA256
from meshllm.models.library.local_model import LocalModel, from_manifest, from_path
from meshllm.models.library.store import Store, disk_error
from meshllm.util.threads import in_thread

from .fetcher import Fetcher, PeerFileSource
from .package import PackageFetcher
from .partial_file import state_path
from .prefix_hash import digests
from .progress import Report, TransferProgress, TransferStage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["PeerFileSource", "chunk_digests", "ensure", "resumable_bytes"]


async def ensure(
    wanted: Wanted,
    store: Store,
    report: Report,
    *,
    packages: PackageFetcher | None = None,
    hub: Hub | None = None,
    peers: PeerFileSource | None = None,
    admit: Callable[[Manifest], None] | None = None,
) -> LocalModel:
    """The model on this disk, downloaded first if it is missing.

    Raises InvalidModelFile, DownloadFailed, NotEnoughSpace; UnknownModel and AmbiguousModel where a repository has no
    such model or several. When cancelled, what has arrived is kept and nothing is left running; the next call
    resumes it. Without `packages` there are no package sources, without `peers` no other nodes. `admit` is called in a
    thread with the files before any of them is downloaded, and may raise MeshError.
    """
    if isinstance(wanted, Path):
        path = wanted
        model = await in_thread(lambda stop: from_path(path, store), "read-header")
    else:
        hub = hub or Hub()
        try:
            provision = _Provision(store, report, Fetcher(store, report, packages, hub, peers))
            manifest = await _ManifestFinder(store, report, provision, hub).manifest(wanted)
            if admit is not None:
                await in_thread(lambda stop: admit(manifest), "admit")
            if await provision.ensure(manifest) and isinstance(wanted, Manifest):
                store.manifest_cache.put(manifest)
        except OSError as error:
            raise disk_error(error, store.folder / "model") from error
        model = await in_thread(lambda stop: from_manifest(manifest, store), "read-header")
    report(TransferProgress(TransferStage.READY, file=model.path.name, done=model.size, total=model.size))
    return model


def resumable_bytes(wanted: Wanted, store: Store) -> int:
    """Bytes of partial files that the next `ensure` resumes from. Blocks."""
    manifest = store.manifest_of(wanted)
    return sum(store.resumable_bytes(file) for file in manifest.all_files) if manifest is not None else 0


async def chunk_digests(file: ModelFile, store: Store) -> bytes:
    """The `PrefixDigests.chunks` of a file on this disk; the file is read if they are not known.

    Raises DownloadFailed if the file is missing or has changed. It can be cancelled.
    """
    if (known := store.chunk_digests(file)) is not None:
        return known
    path = store.path(file)
    try:
        found = await in_thread(lambda stop: digests(stop, path, store.chunk_bytes, lambda done: None), "chunk-digests")
        if found.sha256 != file.sha256:
            store.forget(path)
            raise DownloadFailed(f"{path} has changed since it was verified.", advice="Download it again.")
        store.prepare()
        store.record_chunks(file.sha256, found.chunks)
    except OSError as error:
        raise disk_error(error, path) from error
    return found.chunks


class _ManifestFinder:
    """Looks up the manifest of a model."""

    def __init__(self, store: Store, report: Report, provision: _Provision, hub: Hub) -> None:
        self._store = store
        self._report = report
        self._provision = provision
        self._hub = hub

    async def manifest(self, wanted: CatalogEntry | HubReference | Manifest) -> Manifest:
        source = wanted.source if isinstance(wanted, CatalogEntry) else wanted
        if isinstance(source, HubReference):
            source = await self._look_up(source)
        return wanted.complete(source) if isinstance(wanted, CatalogEntry) else source

    async def _look_up(self, reference: HubReference) -> Manifest:
        """The hub's manifest, unless a cached one is complete on this disk; without the hub, the cached one."""
        kept = await in_thread(lambda stop: self._store.manifest_cache.get(reference), "kept-manifest")
        if kept is not None and all(self._store.is_verified(file) for file in kept.all_files):
            return kept
        self._report(TransferProgress(TransferStage.CONNECTING, file=reference.name, source=self._hub.endpoint))
        try:
            found = await look_up(reference, self._hub)
        except DownloadFailed as failure:
            known = kept or await self._placed_by_user(reference) or await self._cached(reference)
            if known is None:
                raise
            self._report(TransferProgress(TransferStage.FAILED_SOURCE, file=reference.name, detail=str(failure)))
            return known
        self._store.prepare()
        self._store.manifest_cache.put(found, reference)
        return found

    async def _cached(self, reference: HubReference) -> Manifest | None:
        """The model in the cache of huggingface_hub, if it is complete there."""
        listing = await in_thread(lambda stop: cached(reference), "hub-cache")
        try:
            return choose(reference, listing, "the cache on this disk") if listing else None
        except (DownloadFailed, UnknownModel):
            return None  # a part is missing; the hub's error is reported instead

    async def _placed_by_user(self, reference: HubReference) -> Manifest | None:
        """The model as a file that the user put into the store, if the reference has its digest."""
        name = reference.path.rpartition("/")[2]
        if not reference.sha256 or part_of(name) is not None:
            return None
        source = HubSource(reference.repository, reference.revision, reference.path)
        file = ModelFile(name, 0, reference.sha256, (source,))
        path = self._store.path(file)
        if not path.is_file():
            return None
        file = ModelFile(name, path.stat().st_size, reference.sha256)
        await self._provision.check_existing(file)
        return Manifest(reference.name, (file,), origin=str(path)) if self._store.is_verified(file) else None


class _Provision:
    """Provides the files of a manifest on this disk."""

    def __init__(self, store: Store, report: Report, fetcher: Fetcher) -> None:
        self._store = store
        self._report = report
        self._fetcher = fetcher

    async def ensure(self, manifest: Manifest) -> bool:
        """Download missing files; returns whether there were any."""
        for file in manifest.all_files:
            if not is_file_name(file.name) or not SHA256.fullmatch(file.sha256) or file.size <= 0:
                raise DownloadFailed(f"The list of files of {manifest.name} is not valid.")
        missing: list[tuple[ModelFile, list[Path]]] = []
        if self._store.find_together(manifest.files) is None:
            missing += await self._missing(manifest.files, projector=False)
        if manifest.projector is not None and not self._store.is_verified(manifest.projector):
            missing += await self._missing((manifest.projector,), projector=True)
        if missing:
            self._store.check_space(
                sum(file.size - self._store.resumable_bytes(file) for file, _ in missing), manifest.name
            )
        for file, places in missing:
            await self._fetch(file, places)
        return bool(missing)

    async def check_existing(self, file: ModelFile) -> None:
        """Hash files at the file's target paths that may be it, each once."""
        for path in self._store.target_paths(file):
            if path.is_file() and path.stat().st_size == file.size and self._store.known_digest(path) is None:
                await self._read(path, file)

    async def _missing(self, files: Sequence[ModelFile], *, projector: bool) -> list[tuple[ModelFile, list[Path]]]:
        """The missing files of one model, each with its possible target paths, best first."""
        self._store.prepare()
        for file in files:
            await self.check_existing(file)
        if self._store.find_together(files) is not None:
            return []
        for match in await in_thread(lambda stop: list(other_apps.find_files(files)), "look-elsewhere"):
            for path, file in zip(match.paths, files, strict=True):
                if match.sure:
                    self._store.record(path, file.sha256)
                elif self._store.known_digest(path) is None:
                    await self._read(path, file)
            if self._store.find_together(files) is not None:
                return []
        if len(files) > 1:
            folder = self._folder(files)
            paths = [(file, folder / file.name) for file in files]
            return [(file, [path]) for file, path in paths if self._store.known_digest(path) != file.sha256]
        places = self._store.target_paths(files[0])
        # Projectors of many models have the same name: beside another model it would be misleading.
        return [(files[0], places[1:] if projector else places)]

    def _folder(self, files: Sequence[ModelFile]) -> Path:
        """The folder for all files: the one that has most of them, among those without another file in the way."""
        best, most = None, -1
        for path in self._store.target_paths(files[0]):
            known = [(path.with_name(file.name), file) for file in files]
            there = sum(self._store.known_digest(path) == file.sha256 for path, file in known)
            free = sum(not path.exists() and not path.is_symlink() for path, _ in known)
            if there + free == len(files) and there > most:
                best, most = path.parent, there
        if best is None:
            raise DownloadFailed(
                f"Other files in {self._store.folder} have the names of parts of {files[0].name}.",
                advice="Rename them or move them away, then try again.",
            )
        return best

    async def _read(self, path: Path, file: ModelFile) -> None:
        found = await self._fetcher.digests(path, file)
        self._store.prepare()
        self._store.record(path, found.sha256)
        if found.sha256 == file.sha256:
            self._store.record_chunks(file.sha256, found.chunks)

    async def _fetch(self, file: ModelFile, places: list[Path]) -> None:
        async with self._exclusive(file):
            if any(self._store.known_digest(path) == file.sha256 for path in places):
                return  # downloaded by another process meanwhile
            whole = await self._fetcher.fetch(file)
            # Without its table a partial file counts as complete, if the process ends before the rename.
            state_path(whole).unlink(missing_ok=True)
            await in_thread(lambda stop: self._store.adopt(whole, file, places), "adopt")
            self._store.discard(file)

    @asynccontextmanager
    async def _exclusive(self, file: ModelFile) -> AsyncIterator[None]:
        """Hold the lock of this content, between tasks and processes."""
        from filelock import Timeout

        lock = self._store.lock(file)
        try:
            await lock.acquire(timeout=0)
        except Timeout:
            self._report(TransferProgress(TransferStage.WAITING, file=file.name, total=file.size))
            await lock.acquire()
        try:
            yield
        finally:
            await asyncio.shield(lock.release())
