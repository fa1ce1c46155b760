"""`demand-downloads.json`: the files that this node downloaded because the mesh asked for them, and their bound.

Invariants: the files that lie on this disk have at most `limit` bytes together, over all runs, and `KEEP_FREE_BYTES` of
the disk stay free. A file that the owner removes frees its part. Nothing is removed by itself: this node may serve it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from meshllm.errors import NotEnoughSpace
from meshllm.models.catalog.catalog import load
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer.lease_cache import KEEP_FREE_BYTES
from meshllm.util.atomic_file import replace_file
from meshllm.util.format import gigabytes

log = logging.getLogger(__name__)

FILE: Final = "demand-downloads.json"
MAX_BYTES: Final = 1 << 20
MAX_FILES: Final = 1000

Admit = Callable[[Manifest], None]


class DemandDownloads:
    """What this node may download for the mesh's demand. `limit`: bytes (0: nothing)."""

    def __init__(self, home: Path, store: Store, limit: int) -> None:
        self._home = home
        self._store = store
        self._limit = limit
        self._most: dict[str, int] = {}
        self._files: dict[str, ModelFile] | None = None

    def allow(self, model: str, most: int) -> None:
        """`model` may be downloaded: its files, without a vision projector, have at most `most` bytes."""
        self._most[model] = most

    def forget(self, model: str) -> None:
        """`model` may no longer be downloaded."""
        self._most.pop(model, None)

    def admission(self, model: str) -> Admit | None:
        """Checks the files of `model` before they are downloaded; None if it may not be downloaded."""
        most = self._most.get(model)
        return None if most is None else lambda manifest: self._admit(manifest, most)

    def room(self) -> int:
        """Bytes that may still be downloaded. Blocks."""
        if not self._limit:
            return 0
        folder = self._store.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free - KEEP_FREE_BYTES
        return max(0, min(self._limit - sum(map(self._held, self._known().values())), free))

    def _admit(self, manifest: Manifest, most: int) -> None:
        """Raises NotEnoughSpace for files that are too large. Blocks."""
        missing = [file for file in manifest.all_files if not self._store.is_verified(file)]
        if not missing:
            return
        size = sum(file.size for file in manifest.files)
        if size > most:
            raise NotEnoughSpace(
                f"{manifest.name} has {gigabytes(size)}, more than the memory holds that was free.",
                advice="Free memory, or choose a smaller quantization.",
            )
        needed = sum(file.size - self._store.resumable_bytes(file) for file in missing)
        if needed > (room := self.room()):
            raise NotEnoughSpace(
                f"{manifest.name} needs {gigabytes(needed)}; {gigabytes(room)} are left for downloads on demand "
                f"(--max-download: {gigabytes(self._limit)}; {gigabytes(KEEP_FREE_BYTES)} of the disk stay free).",
                advice="Start the node with a larger --max-download, or remove models ('mesh-llm models remove').",
            )
        log.info("%s is downloaded because the mesh asks for it: %s.", manifest.name, gigabytes(needed))
        known = self._known()
        known.update((file.sha256, file) for file in missing)
        self._files = {sha256: file for sha256, file in known.items() if self._held(file) or file in missing}
        rows = [(file.name, file.size, file.sha256) for file in list(self._files.values())[-MAX_FILES:]]
        replace_file(self._home / FILE, json.dumps(rows), mode=0o600)

    def _held(self, file: ModelFile) -> int:
        """Bytes of the file, or of its part, on this disk."""
        return file.size if self._store.has_size(file) else self._store.resumable_bytes(file)

    def _known(self) -> dict[str, ModelFile]:
        """The files by digest. A damaged file of the home counts for nothing."""
        if self._files is None:
            self._files = {file.sha256: file for file in _read(self._home / FILE)}
        return dict(self._files)


def _read(path: Path) -> list[ModelFile]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        return [
            ModelFile(name, size, sha256)
            for name, size, sha256 in found[:MAX_FILES]
            if isinstance(name, str) and type(size) is int and isinstance(sha256, str)
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read and is ignored: %s", path, error)
        return []


class CatalogSizes(Mapping[str, int]):
    """Bytes of the catalogue's models, by name, without vision projectors. The catalogue is read at the first use
    (40 ms, 2 MB): a client of a mesh in which no node downloads does not need it."""

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {entry.name: entry.size for entry in load().entries if entry.size}

    def __getitem__(self, model: str) -> int:
        return self._sizes[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def catalogued(model: str) -> CatalogEntry | None:
    """The catalogue's model of exactly that name."""
    entry = load().get(model)
    return entry if entry is not None and entry.name == model else None
