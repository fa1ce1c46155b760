"""Models that can be served from this disk at once, by the names that callers use.

Invariants: only complete files count; only headers are read, each once (`header_cache.py`). Files that are not models
are skipped silently: the folder is the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Final

from meshllm.errors import MeshError
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import Wanted
from meshllm.models.catalog.names import model_name
from meshllm.models.hub.manifest import Manifest
from meshllm.models.library import other_apps

from .local_model import from_path
from .other_apps import walk
from .store import Store

# Headers read in one scan; the first time the largest vocabularies take about 25 ms each.
MOST_FILES: Final = 256
# Folders in the store are named after repositories and digests: "organisation/repository/digest/file".
MAX_DEPTH: Final = 4
MAX_ENTRIES: Final = 20_000


def scan(store: Store, *, named: Iterable[Path] = (), catalog: Catalog | None = None) -> dict[str, Wanted]:
    """The models in the store, in the `named` files and of other programs, each as `ensure` takes it.

    A file of the catalogue has the catalogue's name and its own. Of several models with one name the store's wins, then
    the first found. Blocks on the disk.
    """
    found: dict[str, Wanted] = {}
    for entry in (catalog or load()).entries:
        known = store.manifest_of(entry)
        if known is not None and _is_here(known, store):
            found[entry.name] = entry
    for manifest in store.manifest_cache.manifests():
        if _is_here(manifest, store):
            found.setdefault(manifest.name, manifest)
    others = other_apps.first_parts(other_apps.gguf_files())
    seen = store.header_cache()
    for path in islice(chain(named, files_in(store.folder), others), MOST_FILES):
        if seen.is_model(path, lambda path: _is_model(path, store)):
            found.setdefault(model_name(path.name), path)
    seen.save()
    for manifest in islice(other_apps.ollama_models(), MOST_FILES):
        found.setdefault(manifest.name, manifest)
    return found


def aliases(found: Mapping[str, Wanted], store: Store) -> dict[str, str]:
    """Names in `found` (as `scan` returns it) of files with several names, each with the first name of its file.
    Blocks."""
    first: dict[str | Path, str] = {}
    others: dict[str, str] = {}
    for name, wanted in found.items():
        path = _first_file(wanted, store)
        if path is not None:
            known = first.setdefault(store.known_digest(path) or path, name)
            if known != name:
                others[name] = known
    return others


def _first_file(wanted: Wanted, store: Store) -> Path | None:
    """Path of the (first) file."""
    if isinstance(wanted, Path):
        return wanted.absolute()
    known = store.manifest_of(wanted)
    return store.path(known.files[0]).absolute() if known is not None else None


def _is_model(path: Path, store: Store) -> bool:
    """Whether the file is no adapter, projector, later part or incomplete file."""
    try:
        from_path(path, store)
    except (MeshError, OSError):
        return False
    return True


def _is_here(manifest: Manifest, store: Store) -> bool:
    return all(store.has_size(file) for file in manifest.all_files)


def files_in(folder: Path) -> list[Path]:
    """The GGUF files of the store, those in its top folder first."""
    found = []
    for path in walk(folder, MAX_DEPTH, MAX_ENTRIES):
        if path.suffix.lower() == ".gguf" and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: (len(path.parts), path))
