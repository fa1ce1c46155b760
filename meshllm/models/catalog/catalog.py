"""The models that are known by name, read from `catalog.toml`.

Invariants: the data file is checked whole when it is read; an entry is its files with sizes and sha256, or a reference
to the hub, never a path.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from meshllm.core.snapshot import Purpose
from meshllm.errors import InternalError

from . import schema
from .entry import CatalogEntry


class Catalog:
    """The entries, in the order of the data file."""

    def __init__(self, entries: tuple[CatalogEntry, ...]) -> None:
        self.entries = entries
        self._by_name: dict[str, CatalogEntry] = {}
        for entry in entries:
            for name in (entry.name, *entry.aliases):
                if (other := self._by_name.get(name.casefold())) is not None:
                    raise InternalError(
                        f"The catalogue has two models of the same name: {name} also means {other.name}."
                    )
                self._by_name[name.casefold()] = entry

    def get(self, name: str) -> CatalogEntry | None:
        """The entry of that name, or with that alias, whatever the case of its letters."""
        return self._by_name.get(name.casefold())

    def with_digest(self, sha256: str) -> CatalogEntry | None:
        """The entry whose first file has this sha256."""
        return next((entry for entry in self.entries if entry.sha256 == sha256), None)


@cache
def load() -> Catalog:
    """The catalogue that comes with the program."""
    return parse(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Catalog:
    """A catalogue from TOML. Raises InternalError that names the entry and field which is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InternalError(f"The catalogue is not TOML: {error}.") from error
    try:
        table = schema.CatalogTable.model_validate(data)
    except ValidationError as error:
        raise InternalError(schema.first_error(error, data)) from None
    catalog = Catalog(tuple(model.to_entry() for model in table.model))
    files: dict[str, str] = {}
    for entry in catalog.entries:
        _check_draft(entry, catalog)
        for file in (*entry.files, *([entry.projector] if entry.projector else [])):
            if files.setdefault(file.name.casefold(), file.sha256) != file.sha256:
                raise InternalError(
                    f"The catalogue's {entry.name} has a file {file.name}, as another model has with other content."
                )
    return catalog


def _check_draft(entry: CatalogEntry, catalog: Catalog) -> None:
    if entry.draft is None:
        return
    draft = catalog.get(entry.draft)
    if draft is None or draft.name != entry.draft:
        raise InternalError(f"The catalogue has no {entry.draft}, named as the draft model of {entry.name}.")
    if draft.purpose is not Purpose.GENERATE or entry.purpose is not Purpose.GENERATE:
        raise InternalError(
            f"The catalogue's draft model of {entry.name} is {draft.name}: one of them generates no text."
        )
    if draft.parameters >= entry.parameters or draft.size >= entry.size:
        raise InternalError(f"The catalogue's draft model of {entry.name} is {draft.name}, which is not smaller.")
