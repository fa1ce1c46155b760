"""Which model on this disk a name means.

Law: a name means what it means everywhere else (`resolve.py`); a model that is here may also be named by the file it
lies in, and what a file here is called comes before what the catalogue knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meshllm.errors import UnknownModel
from meshllm.models.catalog.entry import Wanted

from .inventory import InventoryItem, item_at
from .store import Store


def find(name: str, everything: Sequence[InventoryItem], store: Store) -> InventoryItem:
    """The model on this disk that is meant. Raises UnknownModel, AmbiguousModel, UsageError."""
    if (item := by_name(name, everything)) is not None:
        return item
    wanted = resolve_name(name, everything, store)
    if (item := item_of(wanted, everything)) is not None:
        return item
    if isinstance(wanted, Path) and (item := item_at(wanted, store)) is not None:
        return item
    raise UnknownModel(
        f"{wanted.name} is not on this disk.",
        advice="`mesh-llm models` lists what is; `mesh-llm download NAME` fetches a model.",
    )


def by_name(name: str, everything: Sequence[InventoryItem]) -> InventoryItem | None:
    """The model that is called so, or that lies in the file of that name or path."""
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
    """The files that stand for the model: not a projector, which may go with several."""
    return item.model.files if item.model is not None else item.files


def resolve_name(name: str, everything: Sequence[InventoryItem], store: Store) -> Wanted:
    """What the name means, here or anywhere. Raises as `resolve` does."""
    from meshllm.models.catalog.resolve import resolve

    there: dict[str, Wanted] = {item.name: item.files[0] for item in everything if item.files}
    return resolve(name, folder=store.folder, disk=lambda: there).wanted


def item_of(wanted: Wanted, everything: Sequence[InventoryItem]) -> InventoryItem | None:
    """The model on this disk that is that, if it is here."""
    if isinstance(wanted, Path):
        return next((item for item in everything if wanted in _own_files(item)), None)
    return by_name(wanted.name, everything)
