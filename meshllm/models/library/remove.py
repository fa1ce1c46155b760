"""Takes a model off this disk: its files in the store, what is left of its download, and what is known of it.

Law: nothing outside the store is touched, a link to a file elsewhere is only taken away itself, and what another model
needs stays. What will go is told first (`plan`), and only that goes (`remove`).
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
    """What goes: `files`, what has arrived of the `unfinished`, the kept `manifests`; `freed` bytes in all. `kept` are
    files that stay, each with the reason."""

    item: InventoryItem
    files: tuple[Path, ...]
    unfinished: tuple[ModelFile, ...]
    manifests: tuple[Manifest, ...]
    freed: int
    kept: tuple[tuple[Path, str], ...] = ()


def plan(item: InventoryItem, everything: Sequence[InventoryItem], store: Store) -> Removal:
    """What removing the model means. Raises UsageError for one that lies elsewhere."""
    if item.program:
        somebody = not item.program.startswith(os.sep)
        whose = f"it belongs to {item.program}" if somebody else "that is not the model folder"
        raise UsageError(
            f"{item.name} lies at {item.files[0]}: {whose}, and nothing is removed there.",
            advice=f"Remove it with {item.program if somebody else 'whatever put it there'}.",
        )
    needed = {path: other.name for other in everything if other is not item for path in other.files}
    files, kept = [], []
    for path in item.files:
        if path in needed:
            kept.append((path, f"{needed[path]} needs it"))
        elif not path.is_relative_to(store.folder):
            kept.append((path, "it does not lie in the model folder"))
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
    """Do it. Raises EnvironmentFailure during a download of it; NotEnoughSpace or DownloadFailed for the disk."""
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
    """What has arrived of an unfinished file."""
    return [
        store.partial_path(file),
        store.partial_path(file, "unpacked"),
        *store.partial_path(file, "wheel").glob("*"),
    ]


def _disk_usage(paths: Sequence[Path], *, holes: bool = False) -> int:
    """Bytes that the files take, links by themselves; `holes`: they are begun, and have some."""
    found = 0
    for path in paths:
        with suppress(OSError):
            facts = path.lstat()
            found += min(facts.st_size, facts.st_blocks * BLOCK_BYTES) if holes else facts.st_size
    return found


def _lock_file(file: ModelFile, store: Store, stack: ExitStack) -> None:
    """Be the only one that does anything with the file."""
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
    """Folders of the store that nothing is left in: those named for repositories and digests."""
    while folder != store.folder and folder.is_relative_to(store.folder):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
