"""What was found out about files by reading them whole, so that none is read whole twice.

Law: a note counts only while the file is as it was: size and time of change, and for files outside the store also
which file it is. Whatever is damaged counts as no note at all.
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

MAX_NOTE_BYTES: Final = 64 << 10
MAX_NOTES: Final = 4096  # far more files than anybody has models; each is read when something is looked for

SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DigestEntry:
    """What was true of a file when its digest was last checked: bytes, and ns since the epoch.

    `path` is relative to the store for files in it, and empty in notes of earlier versions; `inode` 0: any.
    """

    file: str
    size: int
    sha256: str
    modified_ns: int
    path: str = ""
    inode: int = 0


class DigestIndex:
    """The notes about files in `store`, and about those elsewhere, as files in `folder`."""

    def __init__(self, store: Path, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._known: tuple[int, dict[str, list[DigestEntry]]] = (-1, {})

    def digest(self, path: Path) -> str | None:
        """The sha256 the file had when it was last checked, if it has not changed since."""
        note = self._read(self._place(path))
        if note is None or self._path(note) != path:
            return None
        return note.sha256 if _still(note, path) else None

    def noted(self, path: Path) -> str | None:
        """The same, whether or not it has changed since."""
        note = self._read(self._place(path))
        return note.sha256 if note is not None and self._path(note) == path else None

    def places(self, sha256: str) -> list[Path]:
        """Where files with that digest are that have not changed since it was checked; those in the store first."""
        notes = sorted(self._by_digest().get(sha256, ()), key=lambda note: (Path(note.path).is_absolute(), note.path))
        # Read again: what is in memory may have been damaged or taken back on the disk since.
        return [path for note in notes if self.digest(path := self._path(note)) == sha256]

    def all(self) -> Iterator[tuple[str, Path]]:
        """Every digest that is known to be here, with a file that has it."""
        for sha256 in self._by_digest():
            if found := self.places(sha256):
                yield sha256, found[0]

    def record(self, path: Path, sha256: str) -> None:
        """Note that the file's digest was checked just now. Raises OSError."""
        facts = path.stat()
        inside = path.is_relative_to(self._store)
        where = str(path.relative_to(self._store)) if inside else str(path)
        note = DigestEntry(path.name, facts.st_size, sha256, facts.st_mtime_ns, where, 0 if inside else facts.st_ino)
        replace_file(self._place(path), json.dumps(asdict(note)))
        self._known = (-1, {})

    def forget(self, path: Path) -> None:
        """The file is gone, or something else now."""
        self._place(path).unlink(missing_ok=True)
        self._known = (-1, {})

    def _place(self, path: Path) -> Path:
        if path.parent == self._store:
            return self._folder / f"{path.name}.json"
        where = path.relative_to(self._store) if path.is_relative_to(self._store) else path
        return self._folder / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}.at.json"

    def _path(self, note: DigestEntry) -> Path:
        return self._store / (note.path or note.file)

    def _by_digest(self) -> dict[str, list[DigestEntry]]:
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._known[0]:
                found: dict[str, list[DigestEntry]] = {}
                with os.scandir(self._folder) as entries:
                    for _, entry in zip(range(MAX_NOTES), entries, strict=False):
                        if note := self._read(Path(entry.path)):
                            found.setdefault(note.sha256, []).append(note)
                self._known = changed, found
        except OSError:
            return {}
        return self._known[1]

    def _read(self, place: Path) -> DigestEntry | None:
        try:
            with place.open("rb") as file:
                data = json.loads(file.read(MAX_NOTE_BYTES))
            note = DigestEntry(
                str(data["file"]), int(data["size"]), str(data["sha256"]), int(data["modified_ns"]),
                str(data.get("path", "")), int(data.get("inode", 0)),
            )  # fmt: skip
            if SHA256.fullmatch(note.sha256) and self._place(self._path(note)) == place:
                return note
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        return None


def _still(note: DigestEntry, path: Path) -> bool:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return False
    return (note.size, note.modified_ns) == (facts.st_size, facts.st_mtime_ns) and note.inode in (0, facts.st_ino)
