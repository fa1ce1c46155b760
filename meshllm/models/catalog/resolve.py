"""Resolves a model name: a catalogue entry, a local file, or a model at the hub.

Invariants: an existing file at the given path wins; a name that is understood differently from its spelling gives a
note; a name that is not understood is an error that lists the valid forms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.errors import UnknownModel, UsageError

from .catalog import Catalog, load
from .entry import CatalogEntry, Wanted
from .matching import KnownModel, known_models, match
from .names import HUB_FORMS, HUB_HOSTS, hub_reference

MAX_NAME: Final = 4096

_WHAT_WORKS = (
    "Use a name from `mesh-llm download`, the path of a GGUF file (./model.gguf, ~/model.gguf, /where/model.gguf), "
    f"or a model at the hub: {HUB_FORMS}."
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The model that a name means. `note`: for the user, if it differs from the name."""

    wanted: Wanted
    note: str = ""


def resolve(
    text: str,
    *,
    catalog: Catalog | None = None,
    folder: Path | None = None,
    disk: Callable[[], Mapping[str, Wanted]] = dict,
    endpoint: str | None = None,
) -> Resolution:
    """The model that `text` means: a catalogue entry, the absolute path of an existing file, or a hub reference.

    A bare `name.gguf` is searched in the working directory, then in `folder` (the store). `disk` returns local models
    by name; it is only called if the catalogue does not know the name. `endpoint`: the hub's address (default:
    HF_ENDPOINT). Raises UnknownModel, AmbiguousModel, and UsageError for an invalid form.
    """
    wanted = text.strip()
    if not wanted:
        raise UsageError("The model name is empty.", advice=_WHAT_WORKS)
    if len(wanted) > MAX_NAME or not wanted.isprintable():
        raise UsageError("That is not a valid model name.", advice=_WHAT_WORKS)
    catalog = catalog or load()
    if "://" not in wanted and _is_path(wanted):
        there = _here(wanted, folder)
        if there is not None:
            return Resolution(there)
        if wanted.startswith(("~", ".", os.sep)) or (wanted.count("/") == 1 and _is_file_name(wanted)):
            raise UnknownModel(f"There is no file {wanted[:200]}.", advice=_WHAT_WORKS)
        if "/" not in wanted:
            return _by_file_name(wanted, catalog)
    endpoint = os.environ.get("HF_ENDPOINT", "") if endpoint is None else endpoint
    if reference := hub_reference(wanted, endpoint):
        return Resolution(reference)
    if entry := catalog.get(wanted):
        return Resolution(entry)
    found = match(wanted, known_models(catalog.entries, disk()))
    return Resolution(found.wanted, _note(wanted, found))


def _is_path(text: str) -> bool:
    if text.split("/", 1)[0].casefold() in HUB_HOSTS:
        return False
    return text.startswith(("~", ".")) or "/" in text or os.sep in text or _is_file_name(text)


def _is_file_name(text: str) -> bool:
    return text.casefold().endswith(".gguf")


def _here(text: str, folder: Path | None) -> Path | None:
    """The existing file at the path `text`, if any."""
    try:
        path = Path(text).expanduser().absolute()
        if not path.exists() and folder is not None and Path(text).name == text and (folder / text).is_file():
            path = folder / text
        if path.is_dir():
            hub = (
                ""
                if "/" not in text or text.startswith(("~", ".", os.sep))
                else f" For the hub repository use hf://{text[:200]}."
            )
            raise UsageError(f"{path} is a folder.", advice=f"Use the GGUF file in it.{hub}")
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:  # unknown user, name too long, no permission
        raise UsageError(f"{text[:200]} cannot be read: {error}", advice=_WHAT_WORKS) from error


def _by_file_name(text: str, catalog: Catalog) -> Resolution:
    """The catalogue entry whose file has that name."""
    for entry in catalog.entries:
        if entry.file_name.casefold() == text.casefold():
            return Resolution(entry, f"{text} is the file of {entry.name}.")
    raise UnknownModel(
        f"There is no file {text[:200]}, and no known model has a file of that name.", advice=_WHAT_WORKS
    )


def _note(text: str, found: KnownModel) -> str:
    if re.sub(r"\s", "", text.casefold()) == found.name.casefold():
        return ""
    if isinstance(found.wanted, CatalogEntry):
        return f"{text!r} is taken as {found.name} ({found.wanted.quantization})."
    return f"{text!r} is taken as {found.name}, which is on this disk."
