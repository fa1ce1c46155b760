"""Removes a model: its files in the store, its partial download and its manifest.

Invariants: nothing outside the store is touched; a link is removed, not its target; files that another model needs
stay; only what `plan` listed is removed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.errors import EnvironmentFailure, UsageError
from meshllm.models.hub.manifest import Manifest, ModelFile

from .inventory import InventoryItem
from .store import Store, disk_error

BLOCK_BYTES: Final = 512  # what `st_blocks` counts in


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed: `files`, the partial downloads of `unfinished`, the stored `manifests`; `freed` bytes in all.
    `kept`: files that stay, each with the reason."""

    item: InventoryItem
    files: tuple[Path, ...]
    unfinished: tuple[ModelFile, ...]
    manifests: tuple[Manifest, ...]
    freed: int
    kept: tuple[tuple[Path, str], ...] = ()


def plan(item: InventoryItem, everything: Sequence[InventoryItem], store: Store) -> Removal:
    """The plan for removing a model. Raises UsageError for one outside the store."""
    if item.program:
        is_app = not item.program.startswith(os.sep)
        whose = f"belongs to {item.program}" if is_app else "is outside the model folder"
        raise UsageError(
            f"{item.name} was not removed: {item.files[0]} {whose}. mesh-llm removes only files in {store.folder}.",
            advice=f"Remove it with {item.program}." if is_app else "Delete the file yourself if nothing else uses it.",
        )
    needed = {path: other.name for other in everything if other is not item for path in other.files}
    files, kept = [], []
    for path in item.files:
        if path in needed:
            kept.append((path, f"{needed[path]} needs it"))
        elif not path.is_relative_to(store.folder):
            kept.append((path, "it is outside the model folder"))
        else:
            files.append(path)
    unfinished = tuple(file for file in (item.manifest.all_files if item.manifest else ()) if _has_partial(file, store))
    digests = {digest for path in item.files if (digest := store.last_digest(path))}
    if item.manifest is not None:
        digests.add(item.manifest.files[0].sha256)
    manifests = tuple(known for known in store.manifest_cache.manifests() if known.files[0].sha256 in digests)
    freed = _disk_usage(files) + sum(_disk_usage(_partial_paths(file, store), holes=True) for file in unfinished)
    return Removal(item, tuple(files), unfinished, manifests, freed, tuple(kept))


def remove(removal: Removal, store: Store) -> None:
    """Remove it. Raises EnvironmentFailure while it is downloaded; NotEnoughSpace or DownloadFailed for the disk."""
    with ExitStack() as stack:
        for file in removal.unfinished:
            _lock_file(file, store, stack)
        for path in removal.files:
            try:
                digest = store.last_digest(path)
                path.unlink(missing_ok=True)
                store.forget(path)
                if digest is not None and not store.is_verified(ModelFile(path.name, 0, digest)):
                    store.forget_chunks(digest)
            except OSError as error:
                raise disk_error(error, path) from error
            _clear_folders(path.parent, store)
        for file in removal.unfinished:
            store.discard(file)
        for manifest in removal.manifests:
            store.manifest_cache.forget(manifest)


def _has_partial(file: ModelFile, store: Store) -> bool:
    return file.sha256 in store.unfinished()


def _partial_paths(file: ModelFile, store: Store) -> list[Path]:
    """Paths of a partial download."""
    return [
        store.partial_path(file),
        store.partial_path(file, "unpacked"),
        *store.partial_path(file, "wheel").glob("*"),
    ]


def _disk_usage(paths: Sequence[Path], *, holes: bool = False) -> int:
    """Bytes of the files, links not followed; `holes`: sparse partial files."""
    found = 0
    for path in paths:
        with suppress(OSError):
            facts = path.lstat()
            found += min(facts.st_size, facts.st_blocks * BLOCK_BYTES) if holes else facts.st_size
    return found


def _lock_file(file: ModelFile, store: Store, stack: ExitStack) -> None:
    """Hold the file's lock. Raises EnvironmentFailure if it is being downloaded."""
    from filelock import FileLock, Timeout

    lock = FileLock(store.lock(file).lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EnvironmentFailure(
            f"{file.name} is being downloaded.", advice="Stop that first ('mesh-llm stop', if it is the node)."
        ) from None
    stack.callback(lock.release)


def _clear_folders(folder: Path, store: Store) -> None:
    """Remove empty folders of the store, which are named after repositories and digests."""
    while folder != store.folder and folder.is_relative_to(store.folder):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
