"""The model folder: where files are, which ones are verified, partial downloads, locks.

Invariants: a file gets its final name only after its digest was checked; a verified file with unchanged size and
modification time is not read again; files of the user or of other programs are never deleted, moved or overwritten.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshllm.errors import DownloadFailed, NotEnoughSpace, UsageError
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile
from meshllm.models.hub.manifest_cache import ManifestCache
from meshllm.models.transfer.partial_file import CHUNK_BYTES, PartialFile, state_path
from meshllm.models.transfer.resume_table import read_tables
from meshllm.util.atomic_file import replace_file
from meshllm.util.format import megabytes

from .digest_index import SHA256, DigestIndex
from .header_cache import HeaderCache

if TYPE_CHECKING:
    from filelock import AsyncFileLock

STATE: Final = ".mesh-llm"
MARGIN_BYTES: Final = 64 << 20  # left free for other programs

_FOLDERS: Final = ("partial", "manifests", "locks", "chunks", "models")
_DIGEST_BYTES: Final = 32
_MOST_PARTIAL: Final = 4096  # the most partial files that are listed


class Store:
    """A folder of GGUF files; state, locks and partial files are in `.mesh-llm` inside it.

    `chunk_bytes`: chunk size of downloads and digests; other nodes only know the default.
    """

    def __init__(self, folder: Path, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.folder = folder
        self.chunk_bytes = chunk_bytes
        self._state = folder / STATE
        self._digests = DigestIndex(folder, self._state / "manifests")
        self.manifest_cache = ManifestCache(self._state / "models")

    def manifest_of(self, wanted: Wanted) -> Manifest | None:
        """The files of a requested model, as far as they are known without asking the hub; None for a path. Blocks."""
        match wanted:
            case CatalogEntry(hub=HubReference() as hub):
                found = self.manifest_cache.get(hub)
                return wanted.complete(found) if found is not None else None
            case CatalogEntry():
                return wanted.manifest
            case HubReference():
                return self.manifest_cache.get(wanted)
            case Manifest():
                return wanted
            case _:
                return None

    # -- finished files

    def path(self, file: ModelFile) -> Path:
        """Path of the verified file, here or elsewhere; else the path where it is expected."""
        return next(iter(self._digests.paths_of(file.sha256)), self.folder / file.name)

    def has_size(self, file: ModelFile) -> bool:
        """Whether the file is verified, or a file of this name and size exists that is not known to have other
        content."""
        path = self.path(file)
        try:
            return path.stat().st_size == file.size and self.known_digest(path) in (None, file.sha256)
        except OSError:
            return False

    def is_verified(self, file: ModelFile) -> bool:
        """Whether the file exists and is unchanged since it was verified."""
        return bool(self._digests.paths_of(file.sha256))

    def known_digest(self, path: Path) -> str | None:
        """The sha256 of the file when it was last hashed, if it is unchanged since."""
        return self._digests.digest(path)

    def header_cache(self) -> HeaderCache:
        """The cache of which files are models."""
        return HeaderCache(self._state / "seen.json")

    def verified_files(self) -> Iterator[tuple[str, Path]]:
        """Every digest of an unchanged file on this disk, with its path."""
        return self._digests.all()

    def record(self, path: Path, sha256: str) -> None:
        """Record the digest of a file that was just hashed. Raises OSError."""
        self._digests.record(path, sha256)

    def last_digest(self, path: Path) -> str | None:
        """The sha256 of the file when it was last hashed, even if it has changed since."""
        return self._digests.last_digest(path)

    def forget(self, path: Path) -> None:
        """Remove the record of a file that is gone or wrong. Raises OSError."""
        self._digests.forget(path)

    def target_paths(self, file: ModelFile) -> list[Path]:
        """Possible paths of the file, best first: by its name; in a folder named after its repository, if another file
        has the name; in a folder named after its digest."""
        repository = next((source.repository for source in file.sources if isinstance(source, HubSource)), "")
        folders = [self.folder / repository] if repository else []
        folders.append((folders[0] if folders else self.folder) / file.sha256[:12])
        return [folder / file.name for folder in (self.folder, *folders)]

    def find_together(self, files: Sequence[ModelFile]) -> tuple[Path, ...] | None:
        """Paths of these files (the parts of a model), if all are verified in one folder under matching names."""
        first = files[0]
        for path in self._digests.paths_of(first.sha256):
            if len(files) == 1:
                return (path,)
            if path.name.endswith(first.name):
                prefix = path.name[: -len(first.name)]
                paths = tuple(path.with_name(prefix + file.name) for file in files)
                if all(self.known_digest(path) == file.sha256 for path, file in zip(paths, files, strict=True)):
                    return paths
        return None

    def adopt(self, partial: Path, file: ModelFile, places: Sequence[Path]) -> Path:
        """Move a verified file to the first free path and record its digest. Nothing is overwritten.

        Raises OSError, and DownloadFailed if no path is free.
        """
        from filelock import FileLock

        with FileLock(self._state / "locks" / "placing.lock"):
            path = next((place for place in places if not place.exists() and not place.is_symlink()), None)
            if path is None:
                raise DownloadFailed(
                    f"Another file is at {places[0]}, the path of {file.name}.",
                    advice="Rename or move it, then try again. The downloaded bytes are kept.",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        self.record(path, file.sha256)
        return path

    # -- partial files

    def prepare(self) -> None:
        """Create the folders. Raises DownloadFailed if that is not permitted."""
        try:
            for name in _FOLDERS:
                (self._state / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadFailed(
                f"The model folder {self.folder} cannot be written: {error.strerror or error}.",
                advice="Make it writable, or set MESH_LLM_MODELS to another folder.",
            ) from error

    def check_readable(self) -> None:
        """Raises UsageError if the folder cannot be read; a missing one is empty."""
        try:
            with os.scandir(self.folder):
                reason = "" if os.access(self.folder, os.X_OK) else os.strerror(errno.EACCES)
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, FileNotFoundError) and not self.folder.is_symlink():
                return
        if reason:
            raise UsageError(
                f"The model folder {self.folder} cannot be read: {reason.lower()}.",
                advice="Make it a readable folder, or set MESH_LLM_MODELS to another one.",
            )

    def lock(self, file: ModelFile) -> AsyncFileLock:
        """The lock of one content, between processes and tasks."""
        from filelock import AsyncFileLock

        return AsyncFileLock(self._state / "locks" / f"{file.sha256}.lock", poll_interval=0.1)

    def partial_path(self, file: ModelFile, suffix: str = "part") -> Path:
        """Path of the partial file of this content."""
        return self._state / "partial" / f"{file.sha256}.{suffix}"

    def partial_file(self, file: ModelFile) -> PartialFile:
        """Open the partial file; the caller holds its lock. Raises OSError."""
        return PartialFile(self.partial_path(file), file.size, file.sha256, chunk_bytes=self.chunk_bytes)

    def resumable_bytes(self, file: ModelFile) -> int:
        """Bytes of a partial download that the next one resumes from."""
        partial = self.partial_path(file)
        wheels: list[int] = []
        try:
            wheels += [path.stat().st_size for path in self.partial_path(file, "wheel").glob("*.whl") if path.is_file()]
            there = partial.stat().st_size
            tables = read_tables(state_path(partial), file.sha256, file.size, self.chunk_bytes, there)
        except OSError:
            tables = None
        return max([sum(tables[0]) if tables else 0, *wheels])

    def unfinished(self) -> set[str]:
        """The digests of all files with a partial download."""
        try:
            names = [path.name for path in islice((self._state / "partial").iterdir(), _MOST_PARTIAL)]
        except OSError:
            return set()
        return {digest for digest in (name.partition(".")[0] for name in names) if SHA256.fullmatch(digest)}

    def discard(self, file: ModelFile) -> None:
        """Remove the remains of a finished download. Raises OSError."""
        for suffix in ("part", "state", "unpacked"):
            self.partial_path(file, suffix).unlink(missing_ok=True)
        shutil.rmtree(self.partial_path(file, "wheel"), ignore_errors=True)

    def check_space(self, needed: int, what: str) -> None:
        """Raises NotEnoughSpace unless `needed` more bytes fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if needed > 0 and free < needed + MARGIN_BYTES:
            raise NotEnoughSpace(
                f"{what} needs {megabytes(needed + MARGIN_BYTES)} on the disk of {self.folder}, "
                f"where {megabytes(free)} are free.",
                advice="Free disk space, or set MESH_LLM_MODELS to a folder on a larger disk.",
            )

    # -- digests of chunks

    def chunk_digests(self, file: ModelFile) -> bytes | None:
        """The `PrefixDigests.chunks` of a file that was hashed here; None if unknown."""
        count = -(-file.size // self.chunk_bytes)
        try:
            with (self._state / "chunks" / file.sha256).open("rb") as kept:
                found = kept.read(count * _DIGEST_BYTES + 1)
        except OSError:
            return None
        # The last digest is the file's own; a list without it is damaged or of an earlier version.
        return found if len(found) == count * _DIGEST_BYTES and found.endswith(bytes.fromhex(file.sha256)) else None

    def forget_chunks(self, sha256: str) -> None:
        """Remove the chunk digests of the file with that sha256. Raises OSError."""
        (self._state / "chunks" / sha256).unlink(missing_ok=True)

    def record_chunks(self, sha256: str, digests: bytes) -> None:
        """Store the `PrefixDigests.chunks` of the file with that sha256. Raises OSError."""
        if not SHA256.fullmatch(sha256) or len(digests) % _DIGEST_BYTES:
            raise ValueError("no digests")
        replace_file(self._state / "chunks" / sha256, digests)


def disk_error(error: OSError, path: Path) -> NotEnoughSpace | DownloadFailed:
    """The exception for a file system error at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace(
            f"The disk of {path.parent} is full.",
            advice="Free disk space and try again. The downloaded bytes are kept.",
        )
    return DownloadFailed(f"{path} cannot be read or written: {error.strerror or error}.")
