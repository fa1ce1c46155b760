"""The files of models whose layers this node computes for other nodes: a folder of its own, named by digest.

Invariants: no name from the wire becomes a name on this disk; nothing here is a model of this node: files have no
`.gguf` suffix, and no scan, seed index or name lookup reads this folder; it takes `limit` bytes at most, partial
downloads included; what no lease uses goes first, the longest unused of it before others.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from meshllm.errors import DownloadFailed, NotEnoughSpace
from meshllm.models.hub.hub import Hub
from meshllm.models.hub.manifest import ModelFile
from meshllm.models.library import other_apps, scan
from meshllm.models.library.digest_index import SHA256
from meshllm.models.library.store import Store, disk_error
from meshllm.util.format import gigabytes
from meshllm.util.threads import in_thread

from .fetcher import Fetcher, PeerFileSource
from .partial_file import state_path
from .prefix_hash import PrefixDigests
from .progress import Report

# Left free on the disk, whatever the limit says.
KEEP_FREE_BYTES: Final = 2 << 30
# Without a limit of the owner: this much, or half of what is free, if that is less.
DEFAULT_LIMIT_BYTES: Final = 256 << 30
# Files of this disk that are read because they have the size of one leased file; each is read once, ever.
MAX_CANDIDATES: Final = 4


@dataclass(frozen=True, slots=True)
class _Content:
    """What is here of one content: its digest, bytes, time of the last use, and paths."""

    sha256: str
    size: int
    used_ns: int
    paths: tuple[Path, ...]


class LeaseCache:
    """The files that leases brought. `library`: the owner's own models, used in place if they are the very files."""

    def __init__(self, folder: Path, library: Store, limit: int | None = None) -> None:
        """`limit`: the most bytes (None: see `DEFAULT_LIMIT_BYTES`); 0 keeps nothing: hosts send weights."""
        self._store = Store(folder)
        self._library = library
        self._limit = limit

    async def files(
        self, wanted: Sequence[ModelFile], report: Report, peers: PeerFileSource | None
    ) -> tuple[Path, ...]:
        """Paths of the files, in order: the owner's own, or verified ones of this cache, downloaded if missing.

        Raises DownloadFailed, NotEnoughSpace. When cancelled, what has arrived is kept for the next call.
        """
        if not all(SHA256.fullmatch(file.sha256) and file.size > 0 for file in wanted):
            raise DownloadFailed("The lease's list of files is not valid.")
        # The digest is the name: what the host called the file is forgotten here.
        leased = [ModelFile(file.sha256, file.size, file.sha256) for file in wanted]
        try:
            found = {file.sha256: await self._present(file, report) for file in leased}
            missing = {file.sha256: file for file in leased if found[file.sha256] is None}
            if missing:
                self._store.prepare()
                await in_thread(lambda stop: self.make_room(list(missing.values()), set(found)), "lease-cache")
            for file in missing.values():
                found[file.sha256] = await self._fetch(file, report, peers)
        except OSError as error:
            raise disk_error(error, self._store.folder / "file") from error
        return tuple(path for file in leased if (path := found[file.sha256]) is not None)

    def make_room(self, coming: Iterable[ModelFile] = (), keep: Iterable[str] = ()) -> None:
        """Remove what was unused longest until `coming` fits, or what is here fits if nothing comes. Blocks. Raises
        NotEnoughSpace if it cannot fit."""
        kept = set(keep)
        there = list(self._contents())
        held = sum(content.size for content in there)
        needed = sum(max(0, file.size - self._arrived(file)) for file in coming)
        limit = self._room(held)
        for content in sorted(there, key=lambda content: content.used_ns):
            if held + needed <= limit:
                return
            if content.sha256 not in kept:
                self._remove(content)
                held -= content.size
        if needed and held + needed > limit:
            raise NotEnoughSpace(
                f"The lease's files need {gigabytes(held + needed)} and this node keeps {gigabytes(max(0, limit))} for "
                "files of other nodes' models.",
                advice="Start the node with a larger --lease-cache, or free disk space.",
            )

    # -- inside

    async def _present(self, file: ModelFile, report: Report) -> Path | None:
        """The file in the owner's library or in this cache; None if it is in neither."""
        own = await in_thread(lambda stop: self._own(file), "lease-cache")
        if own is not None:
            return own
        for path in await in_thread(lambda stop: self._candidates(file), "lease-cache"):
            found = await Fetcher(self._library, report, None, Hub(), None).digests(path, file)
            self._note(path, found, file)
            if found.sha256 == file.sha256:
                return path
        return await in_thread(lambda stop: self._cached(file), "lease-cache")

    def _own(self, file: ModelFile) -> Path | None:
        """The owner's file with that digest, by its verified mark or by a path that states it."""
        if self._library.is_verified(file):
            return self._library.path(file)
        match = next(other_apps.find_files((file,)), None)
        if match is not None and match.sure:
            return match.paths[0]
        there = (each.path for each in other_apps.gguf_files() if (each.sha256, each.size) == (file.sha256, file.size))
        return next(there, None)

    def _candidates(self, file: ModelFile) -> list[Path]:
        """Files of the owner that were never read and have the size of `file`."""
        others = (found.path for found in other_apps.gguf_files() if found.size == file.size and not found.sha256)
        own = (path for path in scan.files_in(self._library.folder) if _size(path) == file.size)
        unread = [path for path in (*own, *others) if self._library.known_digest(path) is None]
        return unread[:MAX_CANDIDATES]

    def _note(self, path: Path, found: PrefixDigests, file: ModelFile) -> None:
        self._library.prepare()
        self._library.record(path, found.sha256)
        if found.sha256 == file.sha256:
            self._library.record_chunks(file.sha256, found.chunks)

    def _cached(self, file: ModelFile) -> Path | None:
        path = self._store.folder / file.sha256
        if self._store.known_digest(path) != file.sha256:
            path.unlink(missing_ok=True)
            return None
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    async def _fetch(self, file: ModelFile, report: Report, peers: PeerFileSource | None) -> Path:
        async with self._store.lock(file):
            whole = await Fetcher(self._store, report, None, Hub(), peers).fetch(file)
            state_path(whole).unlink(missing_ok=True)
            place = self._store.folder / file.sha256
            path = await in_thread(lambda stop: self._store.adopt(whole, file, [place]), "lease-cache")
            self._store.discard(file)
            return path

    def _room(self, held: int) -> int:
        """The most bytes that this cache may take now."""
        self._store.folder.mkdir(parents=True, exist_ok=True)
        reachable = shutil.disk_usage(self._store.folder).free + held
        limit = min(DEFAULT_LIMIT_BYTES, reachable // 2) if self._limit is None else self._limit
        return min(limit, reachable - KEEP_FREE_BYTES)

    def _arrived(self, file: ModelFile) -> int:
        """Bytes on the disk of a partial download."""
        return _size(self._store.partial_path(file))

    def _contents(self) -> Iterator[_Content]:
        """All contents, complete or partial."""
        found: dict[str, _Content] = {}
        for folder in (self._store.folder, self._store.partial_path(ModelFile("", 0, "")).parent):
            try:
                paths = list(folder.iterdir())
            except OSError:
                continue
            for path in paths:
                sha256 = path.name.partition(".")[0]
                if not SHA256.fullmatch(sha256) or path.is_dir():
                    continue
                facts = path.stat()
                before = found.get(sha256, _Content(sha256, 0, 0, ()))
                found[sha256] = replace(
                    before,
                    size=before.size + facts.st_size,
                    used_ns=max(before.used_ns, facts.st_atime_ns),
                    paths=(*before.paths, path),
                )
        yield from found.values()

    def _remove(self, content: _Content) -> None:
        for path in content.paths:
            self._store.forget(path)
            path.unlink(missing_ok=True)
        self._store.forget_chunks(content.sha256)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
