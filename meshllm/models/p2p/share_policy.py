"""Which model files this node gives to other nodes.

Invariants: by default a file is offered, listed and hashed for others only if the catalogue has its digest, or if a
model that the mesh runs consists of it; others of the owner's files are not found by name nor by digest.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from meshllm.models.catalog.catalog import load
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.library.store import Store


class Share(Enum):
    """KNOWN: what the catalogue knows or the mesh runs. ALL: every model on the disk. NONE: no file; what the catalogue
    knows is still named, because this node may serve it."""

    KNOWN = "known"
    ALL = "all"
    NONE = "none"


class SharePolicy:
    """Decides for one node. `running` returns the names of the models that the mesh runs, as this node sees it."""

    def __init__(self, share: Share, store: Store, running: Callable[[], frozenset[str]] = frozenset) -> None:
        self.share = share
        self._store = store
        self._running = running

    def allows_model(self, name: str, source: Wanted) -> bool:
        """Whether other nodes may learn that the model is on this disk, found as `source` under `name`. Blocks."""
        if self.share is Share.ALL or isinstance(source, CatalogEntry) or self.runs(name):
            return True
        manifest = self._store.manifest_of(source)
        path = self._store.path(manifest.files[0]) if manifest is not None else source
        digest = self._store.known_digest(path) if isinstance(path, Path) else None
        return digest is not None and self.is_known(digest)

    def runs(self, name: str) -> bool:
        """Whether the mesh runs a model of that name."""
        return name.casefold() in {each.casefold() for each in self._running()}

    def is_known(self, sha256: str) -> bool:
        """Whether a file of the catalogue has that digest. Blocks."""
        for entry in load().entries:
            manifest = self._store.manifest_of(entry)
            files = manifest.all_files if manifest is not None else entry.files
            if entry.sha256 == sha256 or any(file.sha256 == sha256 for file in files):
                return True
        return False
