"""Which models could be served from this disk at once, by the names that callers use.

Law: only what is there whole counts, and nothing is read but headers. What is no model is passed over without a word:
the folder is the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from meshllm.errors import MeshError

from .catalog import Catalog, load
from .entry import Wanted
from .local import from_path
from .store import Store

# Headers read in one look; each takes a few milliseconds, and a node tells others of far fewer models anyway.
MOST_FILES: Final = 256


def scan(store: Store, *, named: Iterable[Path] = (), catalog: Catalog | None = None) -> dict[str, Wanted]:
    """The models in the store and those in the `named` files, each with what `download.ensure` takes for it.

    A file of the catalogue goes by the catalogue's name and by its own; blocks on the disk.
    """
    entries = (catalog or load()).entries
    found: dict[str, Wanted] = {
        entry.name: entry for entry in entries if entry.files and all(store.has_size(file) for file in entry.files)
    }
    for path in [*named, *_files(store.folder)][:MOST_FILES]:
        try:
            name = from_path(path, store, catalog).name
        except (MeshError, OSError):
            continue  # an adapter, a vision projector, a later part, something half written
        found.setdefault(name, path)
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    except OSError:
        return []
