"""Lists models on this disk, each once: complete or partial, in the store or of another program, valid or damaged.

Read-only. A model has one name, the catalogue's if it has one. Files in the store that are no models are listed with
the reason. Blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from meshllm.errors import MeshError
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.catalog.names import model_name, part_of
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library import other_apps, scan

from .local_model import LocalModel, from_manifest, from_path
from .other_apps import AppModelFile
from .store import Store


class FileState(Enum):
    """The state of a model's files; the values are for programs."""

    VERIFIED = "verified"
    UNVERIFIED = "not-verified"
    MISNAMED = "other-content"  # than the catalogue's model of that name
    PARTIAL = "partial"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class InventoryItem:
    """A model on this disk. `files`: the complete files, a projector last; `size`: bytes of the complete model, of
    which `arrived` are here; `program`: the owning program, "" for the store.

    `model`: the servable model, None if incomplete or for a `reason`. `manifest`: its files, if known. `other_names`:
    further names.
    """

    name: str
    state: FileState
    files: tuple[Path, ...]
    size: int
    arrived: int
    program: str = ""
    model: LocalModel | None = None
    manifest: Manifest | None = None
    entry: CatalogEntry | None = None
    other_names: tuple[str, ...] = ()
    reason: str = ""


def inventory(store: Store, *, catalog: Catalog | None = None) -> list[InventoryItem]:
    """All models, by name; the store's first."""
    known = catalog or load()
    found: dict[Path, InventoryItem] = {}
    disk = scan.look(store, catalog=known)
    misnamed = [(each.name, each.wanted, each.reason) for each in disk.misnamed]
    listed = [each for each in misnamed if isinstance(each[1], CatalogEntry)]  # its name goes before the file's
    others = [each for each in misnamed if not isinstance(each[1], CatalogEntry)]
    for name, wanted, reason in (*listed, *((name, wanted, "") for name, wanted in disk.models.items()), *others):
        item = _item(name, wanted, store, known)
        if item is None or (reason and item.files[0] in found):
            continue
        if reason:
            item = replace(item, state=FileState.MISNAMED, reason=reason)
        before = found.get(item.files[0])
        if before is None:
            found[item.files[0]] = item
        elif name not in (before.name, *before.other_names):
            found[item.files[0]] = _with_name(before, name)
    items = list(found.values())
    items += _partial(store, known, {file.sha256 for item in items if item.manifest for file in item.manifest.files})
    items += _invalid_files(store, known, {path for item in items for path in item.files})
    return sorted(items, key=lambda item: (item.program, item.name.casefold()))


def item_at(path: Path, store: Store) -> InventoryItem | None:
    """The model in a file that was named by its path; None if there is no file."""
    if (item := _item(model_name(path.name), path, store, load())) is not None:
        return item
    try:
        size = path.stat().st_size if path.is_file() else -1
        from_path(path, store)
    except MeshError as error:
        reason = error.message
    except OSError:
        return None
    else:
        reason = ""
    where = _program(path, store)
    return InventoryItem(path.stem, FileState.DAMAGED, (path,), size, size, where, reason=reason) if size >= 0 else None


def _item(name: str, wanted: Wanted, store: Store, catalog: Catalog) -> InventoryItem | None:
    """The model found under that name; None if it can no longer be read."""
    manifest = store.manifest_of(wanted)
    try:
        if manifest is not None and _verified(manifest, store):
            model = from_manifest(manifest, store)
        else:
            path = wanted if isinstance(wanted, Path) else store.path(manifest.files[0]) if manifest else None
            if path is None:
                return None
            model = from_path(path, store, catalog)
        files = (*model.files, *((model.projector,) if model.projector is not None else ()))
        size = sum(path.stat().st_size for path in files)
    except (MeshError, OSError):
        return None
    entry = wanted if isinstance(wanted, CatalogEntry) else catalog.with_digest(model.digest) if model.digest else None
    verified = all(store.known_digest(path) is not None for path in files)
    return InventoryItem(
        name=name,
        state=FileState.VERIFIED if verified else FileState.UNVERIFIED,
        files=files,
        size=size,
        arrived=size,
        program=_program(files[0], store),
        model=model,
        manifest=manifest,
        entry=entry,
        other_names=tuple({model.name} - {name}),
    )


def _with_name(item: InventoryItem, name: str) -> InventoryItem:
    return replace(item, other_names=(*item.other_names, name))


def _verified(manifest: Manifest, store: Store) -> bool:
    return store.find_together(manifest.files) is not None and (
        manifest.projector is None or store.is_verified(manifest.projector)
    )


def _program(path: Path, store: Store) -> str:
    return "" if path.is_relative_to(store.folder) else other_apps.owning_app(path) or str(path.parent)


def _partial(store: Store, catalog: Catalog, whole: set[str]) -> Iterable[InventoryItem]:
    """Models with a partial download."""
    left = store.unfinished()
    kept = [(None, manifest) for manifest in store.manifest_cache.manifests()]
    listed = [(entry, manifest) for entry in catalog.entries if (manifest := store.manifest_of(entry)) is not None]
    for entry, manifest in (*listed, *kept):
        digests = {file.sha256 for file in manifest.all_files}
        if left & digests and manifest.files[0].sha256 not in whole:
            left -= digests
            there = [file for file in manifest.all_files if store.has_size(file)]
            arrived = sum(file.size for file in there)
            arrived += sum(store.resumable_bytes(file) for file in manifest.all_files if file not in there)
            files = tuple(store.path(file) for file in there)
            yield InventoryItem(
                manifest.name, FileState.PARTIAL, files, manifest.size, arrived, manifest=manifest, entry=entry
            )
    for sha256 in sorted(left - {file.sha256 for _, manifest in listed for file in manifest.all_files}):
        file = ModelFile(f"{sha256}.gguf", 0, sha256)
        size = sum(path.stat().st_size for path in (store.partial_path(file),) if path.is_file())
        manifest = Manifest(f"unknown-{sha256[:12]}", (file,))
        yield InventoryItem(
            manifest.name,
            FileState.PARTIAL,
            (),
            0,
            size,
            manifest=manifest,
            reason="unknown model (no manifest for this partial file)",
        )


def _invalid_files(store: Store, catalog: Catalog, known: set[Path]) -> Iterable[InventoryItem]:
    """Files of the store that are neither models nor parts of one."""
    entries = {file.name: entry for entry in catalog.entries for file in entry.files}
    for path in scan.files_in(store.folder):
        part = part_of(path.name)
        if path in known or (part is not None and part.number > 1 and path.with_name(part.first).is_file()):
            continue
        try:
            size = path.stat().st_size
            from_path(path, store)
        except OSError:
            continue  # removed meanwhile
        except MeshError as error:
            reason = error.message
            entry = entries.get(path.name)
            manifest = entry.manifest if entry is not None else None
            names = (entry.name,) if entry is not None else ()
            yield InventoryItem(
                path.stem, FileState.DAMAGED, (path,), size, size, "", None, manifest, entry, names, reason
            )
        else:  # beyond the scan limit, or new
            yield InventoryItem(model_name(path.name), FileState.UNVERIFIED, (path,), size, size)


# -- the catalogue


class Presence(Enum):
    """Whether a model of the catalogue is on this disk."""

    HERE = "yes"
    UNVERIFIED = "not-verified"
    PARTIAL = "partial"
    ELSEWHERE = "elsewhere"
    ABSENT = "no"


@dataclass(frozen=True, slots=True)
class ItemState:
    """State of a catalogue model: `percent` downloaded if partial; owning `program` if elsewhere."""

    presence: Presence
    percent: int = 0
    program: str = ""


def catalog_state(entry: CatalogEntry, store: Store, others: list[AppModelFile]) -> ItemState:
    """The state of a catalogue entry; `others`: the files of other programs (`other_apps.gguf_files`)."""
    manifest = store.manifest_of(entry)
    if manifest is None:
        found = next((it for it in others if _is_called(it.path.name, entry.file_name)), None)
        return (
            ItemState(Presence.ELSEWHERE, program=other_apps.owning_app(found.path))
            if found
            else ItemState(Presence.ABSENT)
        )
    together = store.find_together(manifest.files)
    if together is not None and _verified(manifest, store):
        program = _program(together[0], store)
        return ItemState(Presence.ELSEWHERE, program=program) if program else ItemState(Presence.HERE)
    if all(store.has_size(file) for file in manifest.all_files):
        return ItemState(Presence.UNVERIFIED)
    match = next(other_apps.find_files(manifest.files, others), None)
    if match is not None:
        return ItemState(Presence.ELSEWHERE, program=_program(match.paths[0], store))
    arrived = sum(file.size if store.has_size(file) else store.resumable_bytes(file) for file in manifest.all_files)
    return (
        ItemState(Presence.PARTIAL, min(99, 100 * arrived // manifest.size)) if arrived else ItemState(Presence.ABSENT)
    )


def _is_called(name: str, wanted: str) -> bool:
    """Whether `name` is `wanted`, or llama.cpp's name for it, with the repository before it."""
    return bool(wanted) and (name == wanted or name.endswith(f"_{wanted}"))
