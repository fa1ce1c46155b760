"""Models that can be served from this disk at once, by the names that callers use.

Invariants: only complete files count; only headers are read, each once (`header_cache.py`). A name of the catalogue
counts only with the catalogue's digest (`catalog_names.py`), except for files that the owner named. Files that are not
models are skipped silently: the folder is the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final

from meshllm.core.routing.model_names import ModelNames
from meshllm.errors import DamagedModelFile, MeshError
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import Wanted
from meshllm.models.catalog.names import model_name, part_of
from meshllm.models.hub.manifest import Manifest
from meshllm.models.hub.manifest_cache import MAX_FILES
from meshllm.models.library import other_apps
from meshllm.util.format import shell_word

from .catalog_names import CatalogNames
from .header_cache import FileLook
from .local_model import from_path
from .other_apps import walk
from .store import Store

# Headers read in one scan; the first time the largest vocabularies take about 25 ms each.
MOST_FILES: Final = 256
# Folders in the store are named after repositories and digests: "organisation/repository/digest/file".
MAX_DEPTH: Final = 4
MAX_ENTRIES: Final = 20_000
DAMAGED_ADVICE: Final = "Delete the file and download the model again; 'mesh-llm models verify' checks files."


@dataclass(frozen=True, slots=True)
class Misnamed:
    """Something found under a `name` of the catalogue that does not count as that model: the files to hash first
    (`unread`), or else the `reason`, for users."""

    name: str
    wanted: Wanted
    unread: tuple[Path, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that would be the model `name`, and is of no use for a `reason`, for users."""

    name: str
    path: Path
    reason: str

    @property
    def text(self) -> str:
        """What is wrong with which file, without its folder: for other people than the owner."""
        return f"its file {self.path.name} is damaged: {self.reason}."


@dataclass(frozen=True, slots=True)
class ModelsFound:
    """The models on this disk by name, each as `ensure` takes it, and what does not count as the model it is named
    after."""

    models: dict[str, Wanted]
    misnamed: tuple[Misnamed, ...] = ()
    damaged: tuple[DamagedFile, ...] = ()

    @property
    def unread(self) -> tuple[Path, ...]:
        """The files to hash before they count, each once."""
        return tuple(dict.fromkeys(path for each in self.misnamed for path in each.unread))


def scan(store: Store, *, named: Iterable[Path] = (), catalog: Catalog | None = None) -> dict[str, Wanted]:
    """The models of `look` alone."""
    return look(store, named=named, catalog=catalog).models


def look(store: Store, *, named: Iterable[Path] = (), catalog: Catalog | None = None) -> ModelsFound:
    """The models in the store, in the `named` files and of other programs.

    A file of the catalogue has the catalogue's name and its own. Of several models with one name the store's wins, then
    the first found. Blocks on the disk.
    """
    known = catalog or load()
    names = CatalogNames(known, store)
    owners = tuple(named)
    found: dict[str, Wanted] = {}
    misnamed: list[Misnamed] = []
    damaged: list[DamagedFile] = []
    for name, wanted in chain(_of_manifests(store, known), _of_files(store, owners, damaged), _of_ollama()):
        try:
            verdict = names.judge(name, wanted)
        except OSError:
            continue  # removed meanwhile
        if verdict.counts or wanted in owners:
            found.setdefault(name, wanted)
        else:
            misnamed.append(Misnamed(name, wanted, verdict.unread, verdict.reason))
    return ModelsFound(found, tuple(misnamed), tuple([each for each in damaged if each.name not in found]))


def damaged_file(text: str, store: Store) -> DamagedModelFile | None:
    """The error for a name that only a damaged file of this disk has; None if there is none. Blocks."""
    damaged = {each.name: each for each in look(store).damaged}
    for name in ModelNames(damaged, {}).means(text.strip()):
        each = damaged[name]
        return DamagedModelFile(
            f"{name} cannot be served: {each.path} is damaged: {each.reason}.",
            advice=f"{DAMAGED_ADVICE} 'mesh-llm models remove {shell_word(name)}' deletes it.",
            reason=each.reason,
        )
    return None


def _of_manifests(store: Store, catalog: Catalog) -> Iterator[tuple[str, Wanted]]:
    """Models whose files the catalogue or a download lists."""
    for entry in catalog.entries:
        manifest = store.manifest_of(entry)
        if manifest is not None and _is_here(manifest, store):
            yield entry.name, entry
    for manifest in store.manifest_cache.manifests():
        if _is_here(manifest, store):
            yield manifest.name, manifest


def _of_files(store: Store, named: Iterable[Path], damaged: list[DamagedFile]) -> Iterator[tuple[str, Wanted]]:
    """Models in files, named after them. Files of no use are added to `damaged`."""
    others = other_apps.first_parts(other_apps.gguf_files())
    seen = store.header_cache()
    for path in islice(chain(named, files_in(store.folder), others), MOST_FILES):
        look = seen.look(path, lambda path: _look(path, store))
        if look.is_model:
            yield model_name(path.name), path
        elif look.damaged:
            damaged.append(DamagedFile(model_name(path.name), path, look.damaged))
    seen.save()


def _of_ollama() -> Iterator[tuple[str, Wanted]]:
    for manifest in islice(other_apps.ollama_models(), MOST_FILES):
        yield manifest.name, manifest


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


def size_of(wanted: Wanted, store: Store) -> int:
    """Bytes of the model's files; 0 if they are gone. Blocks."""
    if not isinstance(wanted, Path):
        known = store.manifest_of(wanted)
        return known.size if known is not None else 0
    part = part_of(wanted.name)
    begin, mark, end = part.first.rpartition("-00001-of-") if part is not None else ("", "", "")
    number = range(1, min(part.parts, MAX_FILES) + 1) if part is not None else ()
    paths = [wanted.with_name(f"{begin}{mark[0]}{n:05d}{mark[6:]}{end}") for n in number] or [wanted]
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError:
        return 0


def _first_file(wanted: Wanted, store: Store) -> Path | None:
    """Path of the (first) file."""
    if isinstance(wanted, Path):
        return wanted.absolute()
    known = store.manifest_of(wanted)
    return store.path(known.files[0]).absolute() if known is not None else None


def _look(path: Path, store: Store) -> FileLook:
    """Whether the file is no adapter, projector, later part or damaged file."""
    try:
        from_path(path, store)
    except DamagedModelFile as error:
        return FileLook(is_model=False, damaged=error.reason)
    except (MeshError, OSError):
        return FileLook(is_model=False)
    return FileLook(is_model=True)


def _is_here(manifest: Manifest, store: Store) -> bool:
    return all(store.has_size(file) for file in manifest.all_files)


def files_in(folder: Path) -> list[Path]:
    """The GGUF files of the store, those in its top folder first."""
    found = []
    for path in walk(folder, MAX_DEPTH, MAX_ENTRIES):
        if path.suffix.lower() == ".gguf" and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: (len(path.parts), path))
