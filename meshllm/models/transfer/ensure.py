"""Makes sure that a model is on this disk: finds out its files, looks for them, fetches and verifies what is missing.

Law: nothing gets its final name unverified, what lies on this disk already is not fetched, and two that want the same
file do not fetch it twice. Files of other programs and of the user are used where they lie, never changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
) -> LocalModel:
    """The model on this disk; looked up and fetched first if it is not there.

    Raises InvalidModelFile, DownloadFailed, NotEnoughSpace; UnknownModel and AmbiguousModel where a repository has no
    such model or several. When cancelled, what has arrived is kept and nothing is left running; the next call
    resumes it. Without `packages` there are no package sources, without `peers` no other nodes.
    """
    if isinstance(wanted, Path):
        path = wanted
        model = await in_thread(lambda stop: from_path(path, store), "read-header")
    else:
        hub = hub or Hub()
        try:
            provision = _Provision(store, report, Fetcher(store, report, packages, hub, peers))
            manifest = await _ManifestFinder(store, report, provision, hub).manifest(wanted)
            if await provision.ensure(manifest) and isinstance(wanted, Manifest):
                store.manifest_cache.put(manifest)
        except OSError as error:
            raise disk_error(error, store.folder / "model") from error
        model = await in_thread(lambda stop: from_manifest(manifest, store), "read-header")
    report(TransferProgress(TransferStage.READY, file=model.path.name, done=model.size, total=model.size))
    return model


def resumable_bytes(wanted: Wanted, store: Store) -> int:
    """Bytes of unfinished files that the next `ensure` goes on from; blocks."""
    manifest = store.manifest_of(wanted)
    return sum(store.resumable_bytes(file) for file in manifest.all_files) if manifest is not None else 0


async def chunk_digests(file: ModelFile, store: Store) -> bytes:
    """The `checking.Digests.chunks` of a file that is on this disk; read whole if they are not known yet.

    Raises DownloadFailed if it is not there any more, or has other bytes by now. It can be cancelled.
    """
    if (known := store.chunk_digests(file)) is not None:
        return known
    path = store.path(file)
    try:
        found = await in_thread(lambda stop: digests(stop, path, store.chunk_bytes, lambda done: None), "chunk-digests")
        if found.sha256 != file.sha256:
            store.forget(path)
            raise DownloadFailed(f"{path} has other bytes than when it was verified.", advice="Download it again.")
        store.prepare()
        store.record_chunks(file.sha256, found.chunks)
    except OSError as error:
        raise disk_error(error, path) from error
    return found.chunks


class _ManifestFinder:
    """Finds out which files a model has."""

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
        """What the hub says now, unless all of what it said before is here; without the hub, what it said before."""
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
        """The model as the hub's own cache has it, as far as that is whole."""
        listing = await in_thread(lambda stop: cached(reference), "hub-cache")
        try:
            return choose(reference, listing, "the cache on this disk") if listing else None
        except (DownloadFailed, UnknownModel):
            return None  # a part is missing: why the hub cannot be asked is what counts

    async def _placed_by_user(self, reference: HubReference) -> Manifest | None:
        """The model as a file that someone has put here, where its digest is known beforehand."""
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
    """Brings the files of a manifest to this disk."""

    def __init__(self, store: Store, report: Report, fetcher: Fetcher) -> None:
        self._store = store
        self._report = report
        self._fetcher = fetcher

    async def ensure(self, manifest: Manifest) -> bool:
        """Returns whether anything had to be fetched."""
        for file in manifest.all_files:
            if not is_file_name(file.name) or not SHA256.fullmatch(file.sha256) or file.size <= 0:
                raise DownloadFailed(f"What is said of the files of {manifest.name} makes no sense.")
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
        """See whether someone has put the file where it belongs; each that may be it is read only once."""
        for path in self._store.target_paths(file):
            if path.is_file() and path.stat().st_size == file.size and self._store.known_digest(path) is None:
                await self._read(path, file)

    async def _missing(self, files: Sequence[ModelFile], *, projector: bool) -> list[tuple[ModelFile, list[Path]]]:
        """What is to be fetched of files that belong together, and where each may be put, best first."""
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
        # Projectors of many models have the same name: beside a model of another repository it would mislead people.
        return [(files[0], places[1:] if projector else places)]

    def _folder(self, files: Sequence[ModelFile]) -> Path:
        """The folder for all these files: the one with most of them, of those where no other file is in the way."""
        best, most = None, -1
        for place in self._store.target_paths(files[0]):
            known = [(place.with_name(file.name), file) for file in files]
            there = sum(self._store.known_digest(path) == file.sha256 for path, file in known)
            free = sum(not path.exists() and not path.is_symlink() for path, _ in known)
            if there + free == len(files) and there > most:
                best, most = place.parent, there
        if best is None:
            raise DownloadFailed(
                f"Other files lie in {self._store.folder} where the parts of {files[0].name} belong.",
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
            if any(self._store.known_digest(place) == file.sha256 for place in places):
                return  # someone else has fetched it meanwhile
            whole = await self._fetcher.fetch(file)
            # Without its table the file counts as arrived whole, whatever happens before it has its name.
            state_path(whole).unlink(missing_ok=True)
            await in_thread(lambda stop: self._store.adopt(whole, file, places), "adopt")
            self._store.discard(file)

    @asynccontextmanager
    async def _exclusive(self, file: ModelFile) -> AsyncIterator[None]:
        """Be the only one that fetches this content."""
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
