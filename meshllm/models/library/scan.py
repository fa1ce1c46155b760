"""Which models could be served from this disk at once, by the names that callers use.

Law: only what is there whole counts, and nothing is read but headers, each only once (`seen.py`). What is no model is
passed over without a word: the folder is the user's.
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

# Headers read in one look; the largest vocabularies take some 25 milliseconds each, the first time. A node tells others
# of far fewer models anyway.
MOST_FILES: Final = 256
# Folders in the store are named for repositories and digests: "organisation/repository/digest/file".
MAX_DEPTH: Final = 4
MAX_ENTRIES: Final = 20_000


def scan(store: Store, *, named: Iterable[Path] = (), catalog: Catalog | None = None) -> dict[str, Wanted]:
    """The models in the store, those in the `named` files, and those that other programs have put on this disk, each
    with what `download.ensure` takes for it.

    A file of the catalogue goes by the catalogue's name and by its own. Where several have a name, the store's own is
    meant, then the first that is found. Blocks on the disk.
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
    """Which names of `found` (as `scan` gives it) mean a file that has another name there, each with the first of its
    file's names: the catalogue's, where it has one. Blocks on the disk."""
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
    """Where it lies; the first of its parts."""
    if isinstance(wanted, Path):
        return wanted.absolute()
    known = store.manifest_of(wanted)
    return store.path(known.files[0]).absolute() if known is not None else None


def _is_model(path: Path, store: Store) -> bool:
    """Not an adapter, a vision projector, a later part, or something half written."""
    try:
        from_path(path, store)
    except (MeshError, OSError):
        return False
    return True


def _is_here(manifest: Manifest, store: Store) -> bool:
    return all(store.has_size(file) for file in manifest.all_files)


def files_in(folder: Path) -> list[Path]:
    """The GGUF files of the store, those in its own folder first."""
    found = []
    for path in walk(folder, MAX_DEPTH, MAX_ENTRIES):
        if path.suffix.lower() == ".gguf" and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: (len(path.parts), path))
