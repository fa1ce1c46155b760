"""Removes from the cache what is no longer of use: old builds, interrupted ones, fetched sources.

Law: nothing that is being built or run is removed; the reason is told instead.
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
    """A file or directory of the cache, its size in bytes, and the name of the lock that guards it."""

    path: Path
    size: int
    lock: str


def removable(current: Recipe | None, where: Layout) -> tuple[Removable, ...]:
    """All that `current` does not need; everything where `current` is None."""
    engine = installed.find(current, where) if current else None
    kept = {engine.key} if engine else set()
    if current and engine is None:
        kept.add(current.key)  # an interrupted build that the next run goes on with
    found = [Removable(path, installed.size_of(path), _build_lock(path)) for path in _directories(where, kept)]
    if where.downloads.is_dir():
        for path in sorted(where.downloads.iterdir()):
            if current is None or path.name != current.source.pin.file:
                size = path.lstat().st_size if path.is_file() else installed.size_of(path)
                found.append(Removable(path, size, _download_lock(path)))
    return tuple(found)


def remove(found: Removable, where: Layout) -> str:
    """Remove it. Returns "" or the reason why it was kept."""
    import filelock

    where.locks.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(where.locks / found.lock).acquire(blocking=False):
            if installed.in_use(found.path):
                return "a program runs from it"
            if found.path.is_dir():
                installed.remove(found.path)
            else:
                found.path.unlink(missing_ok=True)
    except filelock.Timeout:
        return "another process is at work on it"
    return ""


def _directories(where: Layout, kept: set[str]) -> Iterator[Path]:
    for folder in (where.builds, where.work):
        if folder.is_dir():
            yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in kept)


def _build_lock(path: Path) -> str:
    """Builds and their work are called KEY, staging directories .KEY.random: whoever builds KEY owns them."""
    return path.name.strip(".").split(".")[0] + ".lock"


def _download_lock(path: Path) -> str:
    """A download is called FILE; what arrives, .FILE.part."""
    return path.name.lstrip(".").removesuffix(".pip").removesuffix(".part") + ".lock"
