"""Remembers which files are models, and which are damaged, so that the next scan reads no header again.

Invariants: an entry is valid only for the same size, modification time and inode. A damaged cache counts as empty; one
that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.models.catalog.names import part_of
from meshllm.util.atomic_file import replace_file

MAX_CACHE_BYTES: Final = 4 << 20
# Letters of the reason why a file is damaged.
MAX_REASON: Final = 300
_VERSION: Final = 2

Facts = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class FileLook:
    """What the header of a file says: whether it `is_model`; if not, why it is `damaged` ("": it is another file)."""

    is_model: bool
    damaged: str = ""


NO_FILE = FileLook(is_model=False)


class HeaderCache:
    """The cache in one file; call `save` after a complete scan. Blocks."""

    def __init__(self, path_of_cache: Path) -> None:
        self._path = path_of_cache
        self._before = _read(path_of_cache)
        self._now: dict[str, tuple[Facts, FileLook]] = {}

    def look(self, path: Path, read: Callable[[Path], FileLook]) -> FileLook:
        """Whether the file is a model, or the first part of a complete one; `read` reads the header."""
        try:
            facts = path.stat()
            now = facts.st_size, facts.st_mtime_ns, facts.st_ino
            if not _parts_are_there(path):
                return NO_FILE
        except OSError:
            return NO_FILE
        before = self._before.get(str(path))
        known = before[1] if before is not None and before[0] == now else read(path)
        self._now[str(path)] = now, known
        return known

    def save(self) -> None:
        """Store the results of this scan only."""
        if self._now != self._before and self._path.parent.is_dir():
            rows = [[path, facts, look.is_model, look.damaged] for path, (facts, look) in self._now.items()]
            text = json.dumps({"version": _VERSION, "files": rows})
            with contextlib.suppress(OSError):
                replace_file(self._path, text)


def _parts_are_there(path: Path) -> bool:
    part = part_of(path.name)
    if part is None or part.number != 1:
        return True  # the header decides about a later part
    begin, _, end = part.first.rpartition("-00001-of-")
    return all(path.with_name(f"{begin}-{number:05d}-of-{end}").is_file() for number in range(2, part.parts + 1))


def _read(path_of_cache: Path) -> dict[str, tuple[Facts, FileLook]]:
    found: dict[str, tuple[Facts, FileLook]] = {}
    try:
        with path_of_cache.open("rb") as file:
            data = json.loads(file.read(MAX_CACHE_BYTES))
        if data["version"] == _VERSION:
            for path, (size, modified, inode), known, damaged in data["files"]:
                look = FileLook(known is True, str(damaged)[:MAX_REASON])
                found[str(path)] = (int(size), int(modified), int(inode)), look
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found
