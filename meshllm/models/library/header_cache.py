"""Which files were found to be models when their headers were read, so that the next look at the disk is quick.

Law: only what is exactly the file that was read counts (size, time of change, inode). A memory that is damaged counts
as none, and one that cannot be written is no fault: the headers are read again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from meshllm.models.catalog.names import part_of
from meshllm.util.atomic_file import replace_file

MAX_CACHE_BYTES: Final = 4 << 20
_VERSION: Final = 1

Facts = tuple[int, int, int]


class HeaderCache:
    """What is remembered in the file `path_of_cache`; whoever has looked at everything calls `save`. Blocks."""

    def __init__(self, path_of_cache: Path) -> None:
        self._path = path_of_cache
        self._before = _read(path_of_cache)
        self._now: dict[str, tuple[Facts, bool]] = {}

    def is_model(self, path: Path, look: Callable[[Path], bool]) -> bool:
        """Whether the file holds a model, or begins one of which all parts are there; `look` finds out."""
        try:
            facts = path.stat()
            now = facts.st_size, facts.st_mtime_ns, facts.st_ino
            if not _parts_are_there(path):
                return False
        except OSError:
            return False
        before = self._before.get(str(path))
        known = before[1] if before is not None and before[0] == now else look(path)
        self._now[str(path)] = now, known
        return known

    def save(self) -> None:
        """Remember what was looked at, and nothing else."""
        if self._now != self._before and self._path.parent.is_dir():
            text = json.dumps({"version": _VERSION, "files": [[path, *facts] for path, facts in self._now.items()]})
            with contextlib.suppress(OSError):
                replace_file(self._path, text)


def _parts_are_there(path: Path) -> bool:
    part = part_of(path.name)
    if part is None or part.number != 1:
        return True  # a later part by itself is for the header to judge
    begin, _, end = part.first.rpartition("-00001-of-")
    return all(path.with_name(f"{begin}-{number:05d}-of-{end}").is_file() for number in range(2, part.parts + 1))


def _read(path_of_cache: Path) -> dict[str, tuple[Facts, bool]]:
    found: dict[str, tuple[Facts, bool]] = {}
    try:
        with path_of_cache.open("rb") as file:
            data = json.loads(file.read(MAX_CACHE_BYTES))
        if data["version"] == _VERSION:
            for path, (size, modified, inode), known in data["files"]:
                found[str(path)] = (int(size), int(modified), int(inode)), known is True
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found
