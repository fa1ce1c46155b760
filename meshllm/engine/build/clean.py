"""Removes old builds, interrupted builds and downloaded sources from the cache.

Invariant: a build that is in progress or in use is kept, and the reason is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshllm.engine.build import installed
from meshllm.engine.build.installed import Layout
from meshllm.engine.build.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Removable:
    """A file or directory of the cache, its size in bytes, and the name of its lock file."""

    path: Path
    size: int
    lock: str


def removable(current: Recipe | None, cache: Layout) -> tuple[Removable, ...]:
    """Files and directories that `current` does not need; all of them if `current` is None."""
    engine = installed.find(current, cache) if current else None
    kept = {engine.key} if engine else set()
    if current and engine is None:
        kept.add(current.key)  # an interrupted build that the next run resumes
    found = [Removable(path, installed.size_of(path), _build_lock(path)) for path in _directories(cache, kept)]
    if cache.downloads.is_dir():
        for path in sorted(cache.downloads.iterdir()):
            if current is None or path.name != current.source.pin.file:
                size = path.lstat().st_size if path.is_file() else installed.size_of(path)
                found.append(Removable(path, size, _download_lock(path)))
    return tuple(found)


def remove(found: Removable, cache: Layout) -> str:
    """Remove it. Returns "", or the reason why it was kept."""
    import filelock

    cache.locks.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(cache.locks / found.lock).acquire(blocking=False):
            if installed.in_use(found.path):
                return "a running program uses it"
            if found.path.is_dir():
                installed.remove(found.path)
            else:
                found.path.unlink(missing_ok=True)
    except filelock.Timeout:
        return "another process works on it"
    return ""


def _directories(cache: Layout, kept: set[str]) -> Iterator[Path]:
    for folder in (cache.builds, cache.work):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in kept)


def _build_lock(path: Path) -> str:
    """The lock of KEY, for builds and work directories (KEY) and staging directories (.KEY.random)."""
    return path.name.strip(".").split(".")[0] + ".lock"


def _download_lock(path: Path) -> str:
    """The lock of FILE, for a download (FILE) and an incomplete one (.FILE.part, .FILE.part.pip)."""
    return path.name.lstrip(".").removesuffix(".pip").removesuffix(".part") + ".lock"
