"""Files of the model store that can be uploaded: verified ones, with the digests of their chunks.

Invariants: a file is found by its sha256 among verified, unchanged files only. A file that must be hashed first is read
once, one file at a time, slowly while this node has other work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from meshllm.errors import MeshError
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import HubReference, Manifest, ModelFile
from meshllm.models.library import scan
from meshllm.models.library.local_model import LocalModel, from_manifest, from_path
from meshllm.models.library.store import Store
from meshllm.models.p2p.seeder import SeedFile
from meshllm.models.p2p.share_policy import Share, SharePolicy
from meshllm.models.transfer.prefix_hash import PrefixDigests, digests
from meshllm.tasks import Owner
from meshllm.util.threads import StopSignal, in_thread
from meshllm.wire.mesh import files as w

log = logging.getLogger(__name__)

# Seconds after which a peer should ask again for a file that is being hashed.
PREPARING_WAIT_SECONDS: Final = 2
# Bytes per second that are hashed while this node answers requests: 5 % of a core.
BUSY_READ_RATE: Final = 32e6
# Shortest time between two scans of the folder for requests by name (seconds).
SCAN_SECONDS: Final = 5.0


class StoreSeedIndex:
    """The `SeedIndex` of a store. `busy` returns whether this node is answering requests."""

    def __init__(
        self,
        store: Store,
        busy: Callable[[], bool],
        policy: SharePolicy,
        on_digest: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_digest` is called after each file that was hashed."""
        self._store = store
        self._policy = policy
        self._busy = busy
        self._on_digest = on_digest
        self._clock = asyncio.get_running_loop().time
        self._owner = Owner("seed index")
        self._hash_lock = asyncio.Lock()
        self._percent: dict[Path, int] = {}
        self._failed: set[Path] = set()
        self._scanned_at = float("-inf")
        self._models: dict[str, list[LocalModel]] = {}

    async def lookup(self, sha256: str) -> SeedFile | w.FileRefusal:
        """The file with that sha256."""
        try:
            found = await in_thread(lambda stop: self._verified(sha256), "look-for-file")
        except OSError:
            found = None
        if found is None:
            return w.FileRefusal(w.FileRefusalReason.ABSENT)
        file, path, modified_ns = found
        if not await self._allows(sha256):
            return w.FileRefusal(w.FileRefusalReason.ABSENT)
        chunks = await in_thread(lambda stop: self._store.chunk_digests(file), "look-for-file")
        if chunks is None:
            return self._start_hashing(path, sha256)
        return SeedFile(path, w.ChunkListing(file.size, self._store.chunk_bytes, chunks), modified_ns)

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        """The models of that name whose files are all verified. Unverified ones are hashed first."""
        await self._scan()
        found = []
        for model in self._models.get(name.casefold(), ()):
            offered = self._offered(model)
            if isinstance(offered, Path):
                return self._start_hashing(offered, None)
            if offered is not None:
                found.append(offered)
        return w.FoundModels(tuple(found))

    def check(self, paths: Iterable[Path]) -> None:
        """Hash files whose digest is not known, each once; one that cannot be read is not tried again."""
        for path in paths:
            if path not in self._failed:
                self._start_hashing(path, None)

    def reading(self) -> dict[Path, int]:
        """The files that are hashed or wait for it, with the percentage that was read."""
        return dict(self._percent)

    async def close(self) -> None:
        """Stop hashing."""
        await self._owner.close()

    async def _scan(self) -> None:
        if self._clock() - self._scanned_at > SCAN_SECONDS:
            self._scanned_at = self._clock()
            self._models = await in_thread(lambda stop: self._by_name(), "look-for-model")

    async def _allows(self, sha256: str) -> bool:
        """Whether a file with that digest is one to give."""
        if self._policy.share is Share.ALL or await in_thread(
            lambda stop: self._policy.is_known(sha256), "look-for-file"
        ):
            return True
        await self._scan()
        models = [model for found in self._models.values() for model in found if self._policy.runs(model.name)]
        return await in_thread(lambda stop: any(self._has(model, sha256) for model in models), "look-for-file")

    # -- in threads

    def _has(self, model: LocalModel, sha256: str) -> bool:
        paths = (*model.files, *((model.projector,) if model.projector is not None else ()))
        return any(self._store.known_digest(path) == sha256 for path in paths)

    def _verified(self, sha256: str) -> tuple[ModelFile, Path, int] | None:
        file = ModelFile("", 0, sha256)
        if not self._store.is_verified(file):
            return None
        path = self._store.path(file)
        facts = path.stat()
        return ModelFile(path.name, facts.st_size, sha256), path, facts.st_mtime_ns

    def _by_name(self) -> dict[str, list[LocalModel]]:
        found: dict[str, list[LocalModel]] = {}
        for name, source in scan.scan(self._store).items():
            try:
                if isinstance(source, CatalogEntry):
                    known = source.manifest or (self._store.manifest_cache.get(source.hub) if source.hub else None)
                    model = from_manifest(known, self._store) if known is not None else None
                elif isinstance(source, Manifest):
                    model = from_manifest(source, self._store)
                else:
                    model = None if isinstance(source, HubReference) else from_path(source, self._store)
            except (MeshError, OSError):
                continue
            if model is not None and self._policy.allows_model(name, source):
                found.setdefault(name.casefold(), []).append(model)
        return found

    def _offered(self, model: LocalModel) -> w.OfferedModel | Path | None:
        """The model with its digests; or the first of its files without one; or None if it cannot be offered. Takes
        about 0.1 ms per file."""
        files: list[w.OfferedFile] = []
        beside = (model.projector,) if model.projector is not None else ()
        for path in model.files + beside:
            digest = self._store.known_digest(path)
            if not w.is_file_name(path.name) or not path.is_file():
                return None
            if digest is None:
                return path
            files.append(w.OfferedFile(path.name, path.stat().st_size, digest))
        projector = files.pop() if model.projector is not None else None
        return w.OfferedModel(model.name, tuple(files), projector, model.context_length)

    def _read(self, stop: StopSignal, path: Path) -> PrefixDigests:
        size = max(1, path.stat().st_size)
        done = 0

        def report(count: int) -> None:
            nonlocal done
            self._percent[path] = min(99, 100 * count // size)
            if self._busy():
                time.sleep((count - done) / BUSY_READ_RATE)
            done = count

        return digests(stop, path, self._store.chunk_bytes, report)

    # -- hashing

    def _is_hashed(self, path: Path, sha256: str | None) -> bool:
        if sha256 is None:
            return self._store.known_digest(path) is not None
        return self._store.chunk_digests(ModelFile(path.name, path.stat().st_size, sha256)) is not None

    def _start_hashing(self, path: Path, sha256: str | None) -> w.FileRefusal:
        """Start hashing the file, unless that is in progress; `sha256`: the expected digest (None: any)."""
        if path not in self._percent:
            self._percent[path] = 0
            self._owner.start(self._hash_and_record(path, sha256), f"read {path.name}")
        return w.FileRefusal(w.FileRefusalReason.PREPARING, self._percent[path], PREPARING_WAIT_SECONDS)

    async def _hash_and_record(self, path: Path, sha256: str | None) -> None:
        try:
            async with self._hash_lock:
                if await in_thread(lambda stop: self._is_hashed(path, sha256), "look-for-file"):
                    return  # by an earlier task that ended after the caller had looked
                found = await in_thread(lambda stop: self._read(stop, path), "hash-for-upload")
            if sha256 is not None and found.sha256 != sha256:
                self._store.forget(path)
                log.warning("%s has changed since it was verified: it is not uploaded", path)
                return
            self._store.prepare()
            self._store.record(path, found.sha256)
            self._store.record_chunks(found.sha256, found.chunks)
        except (MeshError, OSError) as error:
            self._failed.add(path)
            log.warning("%s cannot be uploaded: %s", path, error)
        else:
            self._on_digest()
        finally:
            self._percent.pop(path, None)
