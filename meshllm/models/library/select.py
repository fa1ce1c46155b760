"""Finds the model on this disk that a name means.

A name means the same everywhere (`resolve.py`); a local model may also be named by its file, and local names take
precedence over the catalogue's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meshllm.errors import UnknownModel
from meshllm.models.catalog.entry import Wanted

from .inventory import InventoryItem, item_at
from .store import Store


def find(name: str, everything: Sequence[InventoryItem], store: Store) -> InventoryItem:
    """The model that the name means. Raises UnknownModel, AmbiguousModel, UsageError."""
    if (item := by_name(name, everything)) is not None:
        return item
    wanted = resolve_name(name, everything, store)
    if (item := item_of(wanted, everything)) is not None:
        return item
    if isinstance(wanted, Path) and (item := item_at(wanted, store)) is not None:
        return item
    raise UnknownModel(
        f"{wanted.name} is not on this disk.",
        advice="`mesh-llm models` lists local models; `mesh-llm download NAME` downloads one.",
    )


def by_name(name: str, everything: Sequence[InventoryItem]) -> InventoryItem | None:
    """The model of that name, other name, file name or path."""
    folded = name.strip().casefold()
    for item in everything:
        if item.name.casefold() == folded:
            return item
    for item in everything:
        if folded in (other.casefold() for other in item.other_names):
            return item
    try:
        path = Path(name).expanduser().absolute()
    except (RuntimeError, ValueError):
        return None
    for item in everything:
        if path in _own_files(item) or name in (file.name for file in _own_files(item)):
            return item
    return None


def _own_files(item: InventoryItem) -> Sequence[Path]:
    """The files that identify the model: no projector, which may belong to several."""
    return item.model.files if item.model is not None else item.files


def resolve_name(name: str, everything: Sequence[InventoryItem], store: Store) -> Wanted:
    """What the name means, on this disk or anywhere. Raises as `resolve` does."""
    from meshllm.models.catalog.resolve import resolve

    there: dict[str, Wanted] = {item.name: item.files[0] for item in everything if item.files}
    return resolve(name, folder=store.folder, disk=lambda: there).wanted


def item_of(wanted: Wanted, everything: Sequence[InventoryItem]) -> InventoryItem | None:
    """The listed model that `wanted` is, if it is here."""
    if isinstance(wanted, Path):
        return next((item for item in everything if wanted in _own_files(item)), None)
    return by_name(wanted.name, everything)
