"""Digests of files that were hashed, so that no file is hashed twice.

Invariants: a record is valid only while size and modification time (outside the store also the inode) are unchanged; a
damaged record counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from meshllm.util.atomic_file import replace_file

MAX_ENTRY_BYTES: Final = 64 << 10
MAX_ENTRIES: Final = 4096  # records that are read; each lookup reads all

SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DigestEntry:
    """Facts of a file when it was hashed: bytes, and ns since the epoch.

    `path` is relative to the store for files in it, and empty in records of earlier versions; `inode` 0: any.
    """

    file: str
    size: int
    sha256: str
    modified_ns: int
    path: str = ""
    inode: int = 0


class DigestIndex:
    """The records of files in `store` and elsewhere, one file each in `folder`."""

    def __init__(self, store: Path, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._cached: tuple[int, dict[str, list[DigestEntry]]] = (-1, {})

    def digest(self, path: Path) -> str | None:
        """The sha256 of the file when it was last hashed, if it is unchanged since."""
        entry = self._read(self._entry_path(path))
        if entry is None or self._path(entry) != path:
            return None
        return entry.sha256 if _is_unchanged(entry, path) else None

    def last_digest(self, path: Path) -> str | None:
        """The same, changed or not."""
        entry = self._read(self._entry_path(path))
        return entry.sha256 if entry is not None and self._path(entry) == path else None

    def paths_of(self, sha256: str) -> list[Path]:
        """Paths of unchanged files with that digest; those in the store first."""
        entries = sorted(
            self._by_digest().get(sha256, ()), key=lambda entry: (Path(entry.path).is_absolute(), entry.path)
        )
        # Read again: the record may have been damaged or removed on disk since.
        return [path for entry in entries if self.digest(path := self._path(entry)) == sha256]

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every digest of an unchanged file, with one path."""
        for sha256 in self._by_digest():
            if found := self.paths_of(sha256):
                yield sha256, found[0]

    def record(self, path: Path, sha256: str) -> None:
        """Record the digest of a file that was just hashed. Raises OSError."""
        facts = path.stat()
        inside = path.is_relative_to(self._store)
        where = str(path.relative_to(self._store)) if inside else str(path)
        entry = DigestEntry(path.name, facts.st_size, sha256, facts.st_mtime_ns, where, 0 if inside else facts.st_ino)
        replace_file(self._entry_path(path), json.dumps(asdict(entry)))
        self._cached = (-1, {})

    def forget(self, path: Path) -> None:
        """Remove the record of a file that is gone or changed."""
        self._entry_path(path).unlink(missing_ok=True)
        self._cached = (-1, {})

    def _entry_path(self, path: Path) -> Path:
        if path.parent == self._store:
            return self._folder / f"{path.name}.json"
        where = path.relative_to(self._store) if path.is_relative_to(self._store) else path
        return self._folder / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}.at.json"

    def _path(self, entry: DigestEntry) -> Path:
        return self._store / (entry.path or entry.file)

    def _by_digest(self) -> dict[str, list[DigestEntry]]:
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._cached[0]:
                found: dict[str, list[DigestEntry]] = {}
                with os.scandir(self._folder) as entries:
                    for _, file in zip(range(MAX_ENTRIES), entries, strict=False):
                        if entry := self._read(Path(file.path)):
                            found.setdefault(entry.sha256, []).append(entry)
                self._cached = changed, found
        except OSError:
            return {}
        return self._cached[1]

    def _read(self, path_of_entry: Path) -> DigestEntry | None:
        try:
            with path_of_entry.open("rb") as file:
                data = json.loads(file.read(MAX_ENTRY_BYTES))
            entry = DigestEntry(
                str(data["file"]), int(data["size"]), str(data["sha256"]), int(data["modified_ns"]),
                str(data.get("path", "")), int(data.get("inode", 0)),
            )  # fmt: skip
            if SHA256.fullmatch(entry.sha256) and self._entry_path(self._path(entry)) == path_of_entry:
                return entry
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        return None


def _is_unchanged(entry: DigestEntry, path: Path) -> bool:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return False
    return (entry.size, entry.modified_ns) == (facts.st_size, facts.st_mtime_ns) and entry.inode in (0, facts.st_ino)
