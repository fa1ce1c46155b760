"""Where model files lie, and which of them were verified.

Law: a file under its final name is whole (it is renamed there only after its digest was checked), and a file whose size
and modification time are those of its manifest is not read again to be sure of it. Files that we did not make are
never deleted.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshllm.errors import DownloadFailed, OutOfRoom

from .manifest import ModelFile

if TYPE_CHECKING:
    from filelock import AsyncFileLock

STATE: Final = ".mesh-llm"
MAX_MANIFEST_BYTES: Final = 64 << 10
MARGIN_BYTES: Final = 64 << 20  # left free on the disk, so that other programs can go on

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was true of a file when its digest was last checked: sizes in bytes, time in ns since the epoch."""

    file: str
    size: int
    sha256: str
    modified_ns: int


class Store:
    """A folder of GGUF files. Our own notes, locks and half-finished files are in `.mesh-llm` inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / STATE

    def path(self, file: ModelFile) -> Path:
        """Where the file lies, or will lie."""
        return self.folder / file.name

    def partial(self, file: ModelFile, suffix: str = "part") -> Path:
        """Where what has arrived of the file is kept; one name for each content, wherever it comes from."""
        return self._state / "partial" / f"{file.sha256}.{suffix}"

    def prepare(self) -> None:
        """Make the folders. Raises DownloadFailed where that is not permitted."""
        try:
            for name in ("partial", "manifests", "locks"):
                (self._state / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadFailed(
                f"The model folder {self.folder} cannot be written: {error.strerror or error}.",
                advice="Make it writable, or set MESH_LLM_MODELS to a folder that is.",
            ) from error

    def lock(self, file: ModelFile) -> AsyncFileLock:
        """A lock between processes, and between tasks, that fetch the same content."""
        from filelock import AsyncFileLock

        return AsyncFileLock(self._state / "locks" / f"{file.sha256}.lock", poll_interval=0.1)

    def has_size(self, file: ModelFile) -> bool:
        """Whether a file of that name and size is there, whatever is in it."""
        try:
            return self.path(file).stat().st_size == file.size
        except OSError:
            return False

    def arrived(self, file: ModelFile) -> int:
        """Bytes of an unfinished download that the next one goes on from."""
        kept = [self.partial(file), *self.partial(file, "wheel").glob("*.whl")]
        try:
            return max((path.stat().st_size for path in kept if path.is_file()), default=0)
        except OSError:
            return 0

    def is_verified(self, file: ModelFile) -> bool:
        """Whether the file is there and unchanged since its digest was found right."""
        return self.known_digest(self.path(file)) == file.sha256

    def known_digest(self, path: Path) -> str | None:
        """The sha256 that the file had when it was last checked, if it lies here and has not changed since."""
        if path.parent != self.folder:
            return None
        manifest = self._manifest(path.name)
        try:
            facts = path.stat()
        except OSError:
            return None
        if manifest is None or (manifest.size, manifest.modified_ns) != (facts.st_size, facts.st_mtime_ns):
            return None
        return manifest.sha256

    def record(self, path: Path, sha256: str) -> None:
        """Note that the file's digest was checked just now."""
        facts = path.stat()
        manifest = Manifest(path.name, facts.st_size, sha256, facts.st_mtime_ns)
        target = self._state / "manifests" / f"{path.name}.json"
        scratch = target.with_name(f"{target.name}.{os.getpid()}.new")
        scratch.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
        scratch.replace(target)

    def adopt(self, partial: Path, file: ModelFile) -> Path:
        """Give a verified file its final name; a different file that had it is kept as `NAME.old`."""
        path = self.path(file)
        if path.exists():
            path.replace(path.with_name(f"{path.name}.old"))
        partial.replace(path)
        self.record(path, file.sha256)
        return path

    def check_room(self, needed: int, what: str) -> None:
        """Raises OutOfRoom, with the numbers, unless `needed` more bytes fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if needed > 0 and free < needed + MARGIN_BYTES:
            raise OutOfRoom(
                f"{what} needs {megabytes(needed + MARGIN_BYTES)} on the disk of {self.folder}, "
                f"where {megabytes(free)} are free.",
                advice="Make room there, or set MESH_LLM_MODELS to a folder on a larger disk.",
            )

    def _manifest(self, name: str) -> Manifest | None:
        try:
            with (self._state / "manifests" / f"{name}.json").open("rb") as file:
                data = json.loads(file.read(MAX_MANIFEST_BYTES))
            manifest = Manifest(str(data["file"]), int(data["size"]), str(data["sha256"]), int(data["modified_ns"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return manifest if manifest.file == name and _SHA256.fullmatch(manifest.sha256) else None


def disk_error(error: OSError, path: Path) -> OutOfRoom | DownloadFailed:
    """What to raise for an error of the file system at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfRoom(
            f"The disk of {path.parent} is full.",
            advice="Make room; what has arrived is kept and the next try goes on.",
        )
    return DownloadFailed(f"{path} cannot be read or written: {error.strerror or error}.")


def megabytes(count: int) -> str:
    """A number of bytes as people read it: "98.4 MB" (1 MB is a million bytes)."""
    return f"{count / 1e9:,.1f} GB" if count >= 10_000_000_000 else f"{count / 1e6:,.1f} MB"
