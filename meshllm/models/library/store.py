"""Where model files lie, and which of them were verified.

Law: a file under its final name is whole (it is renamed there only after its digest was checked), and a file whose size
and modification time are those of its note is not read again to be sure of it. Files that we did not make are never
deleted, moved or written over: what has another content gets another place.
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
MARGIN_BYTES: Final = 64 << 20  # left free on the disk, so that other programs can go on

_FOLDERS: Final = ("partial", "manifests", "locks", "chunks", "models")
_DIGEST_BYTES: Final = 32
_MOST_PARTIAL: Final = 4096  # unfinished files that are looked at; nobody has begun so many


class Store:
    """A folder of GGUF files. Our own notes, locks and half-finished files are in `.mesh-llm` inside it.

    `chunk_bytes`: into how many bytes files are cut to be fetched and checked; other nodes know only the default.
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
        """Where the file lies: as it was verified, here or elsewhere; else where it is expected in this folder."""
        return next(iter(self._digests.paths_of(file.sha256)), self.folder / file.name)

    def has_size(self, file: ModelFile) -> bool:
        """Whether a file is there that was verified, or that has this name and size, whatever is in it."""
        try:
            return self.path(file).stat().st_size == file.size
        except OSError:
            return False

    def is_verified(self, file: ModelFile) -> bool:
        """Whether the file is there and unchanged since its digest was found right."""
        return bool(self._digests.paths_of(file.sha256))

    def known_digest(self, path: Path) -> str | None:
        """The sha256 that the file, here or elsewhere, had when it was last checked, if it has not changed since."""
        return self._digests.digest(path)

    def header_cache(self) -> HeaderCache:
        """What is remembered of which files are models."""
        return HeaderCache(self._state / "seen.json")

    def verified_files(self) -> Iterator[tuple[str, Path]]:
        """Every digest that is known to be on this disk, with a file that has it."""
        return self._digests.all()

    def record(self, path: Path, sha256: str) -> None:
        """Note that the file's digest was checked just now. Raises OSError."""
        self._digests.record(path, sha256)

    def last_digest(self, path: Path) -> str | None:
        """The sha256 that the file had when it was last checked, even if it has changed since."""
        return self._digests.last_digest(path)

    def forget(self, path: Path) -> None:
        """Note that the file is not there any more. Raises OSError."""
        self._digests.forget(path)

    def target_paths(self, file: ModelFile) -> list[Path]:
        """Where the file may get its place, best first: under its name; in a folder named for its repository, where
        another file has that name; or in one named for its digest."""
        repository = next((source.repository for source in file.sources if isinstance(source, HubSource)), "")
        folders = [self.folder / repository] if repository else []
        folders.append((folders[0] if folders else self.folder) / file.sha256[:12])
        return [folder / file.name for folder in (self.folder, *folders)]

    def find_together(self, files: Sequence[ModelFile]) -> tuple[Path, ...] | None:
        """Where all these files (the parts of a model) lie verified in one folder, under names that go together."""
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
        """Give a verified file the first of these places that is free, and note its digest. Nothing is written over.

        Raises OSError, and DownloadFailed where no place is free.
        """
        from filelock import FileLock

        with FileLock(self._state / "locks" / "placing.lock"):
            path = next((place for place in places if not place.exists() and not place.is_symlink()), None)
            if path is None:
                raise DownloadFailed(
                    f"Another file lies at {places[0]}, where {file.name} belongs.",
                    advice="Rename it or move it away, then try again: what has arrived is kept.",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        self.record(path, file.sha256)
        return path

    # -- unfinished files

    def prepare(self) -> None:
        """Make the folders. Raises DownloadFailed where that is not permitted."""
        try:
            for name in _FOLDERS:
                (self._state / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadFailed(
                f"The model folder {self.folder} cannot be written: {error.strerror or error}.",
                advice="Make it writable, or set MESH_LLM_MODELS to a folder that is.",
            ) from error

    def check_readable(self) -> None:
        """Raises UsageError where the folder is none, or may not be read; one that is not there yet is empty."""
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
                advice="Make it a folder that you may read, or set MESH_LLM_MODELS to one.",
            )

    def lock(self, file: ModelFile) -> AsyncFileLock:
        """A lock between processes, and between tasks, that fetch the same content."""
        from filelock import AsyncFileLock

        return AsyncFileLock(self._state / "locks" / f"{file.sha256}.lock", poll_interval=0.1)

    def partial_path(self, file: ModelFile, suffix: str = "part") -> Path:
        """Where what has arrived of the file is kept; one name for each content, wherever it comes from."""
        return self._state / "partial" / f"{file.sha256}.{suffix}"

    def partial_file(self, file: ModelFile) -> PartialFile:
        """The unfinished file, to be completed by whoever holds its lock. Raises OSError."""
        return PartialFile(self.partial_path(file), file.size, file.sha256, chunk_bytes=self.chunk_bytes)

    def resumable_bytes(self, file: ModelFile) -> int:
        """Bytes of an unfinished download that the next one goes on from."""
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
        """The digests of all files of which something has arrived and that are not finished."""
        try:
            names = [path.name for path in islice((self._state / "partial").iterdir(), _MOST_PARTIAL)]
        except OSError:
            return set()
        return {digest for digest in (name.partition(".")[0] for name in names) if SHA256.fullmatch(digest)}

    def discard(self, file: ModelFile) -> None:
        """Remove what is left of a download that is finished. Raises OSError."""
        for suffix in ("part", "state", "unpacked"):
            self.partial_path(file, suffix).unlink(missing_ok=True)
        shutil.rmtree(self.partial_path(file, "wheel"), ignore_errors=True)

    def check_space(self, needed: int, what: str) -> None:
        """Raises NotEnoughSpace, with the numbers, unless `needed` more bytes fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if needed > 0 and free < needed + MARGIN_BYTES:
            raise NotEnoughSpace(
                f"{what} needs {megabytes(needed + MARGIN_BYTES)} on the disk of {self.folder}, "
                f"where {megabytes(free)} are free.",
                advice="Make room there, or set MESH_LLM_MODELS to a folder on a larger disk.",
            )

    # -- digests of chunks

    def chunk_digests(self, file: ModelFile) -> bytes | None:
        """The `checking.Digests.chunks` of a file that was read whole here; None: not known yet."""
        count = -(-file.size // self.chunk_bytes)
        try:
            with (self._state / "chunks" / file.sha256).open("rb") as kept:
                found = kept.read(count * _DIGEST_BYTES + 1)
        except OSError:
            return None
        # The last is the file's own: what does not end with it is damaged, or of an earlier version.
        return found if len(found) == count * _DIGEST_BYTES and found.endswith(bytes.fromhex(file.sha256)) else None

    def forget_chunks(self, sha256: str) -> None:
        """The file that has that sha256 is not here any more. Raises OSError."""
        (self._state / "chunks" / sha256).unlink(missing_ok=True)

    def record_chunks(self, sha256: str, digests: bytes) -> None:
        """Keep the `checking.Digests.chunks` of the file that has that sha256. Raises OSError."""
        if not SHA256.fullmatch(sha256) or len(digests) % _DIGEST_BYTES:
            raise ValueError("no digests")
        replace_file(self._state / "chunks" / sha256, digests)


def disk_error(error: OSError, path: Path) -> NotEnoughSpace | DownloadFailed:
    """What to raise for an error of the file system at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace(
            f"The disk of {path.parent} is full.",
            advice="Make room; what has arrived is kept and the next try goes on.",
        )
    return DownloadFailed(f"{path} cannot be read or written: {error.strerror or error}.")
