"""A model that lies on this disk, with what its header says: what the engine can be started with.

Law: nothing is called a `LocalModel` whose header was not read and found sound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from meshllm.errors import InvalidModelFile, UnknownModel

from .catalog import Catalog, load
from .entry import CatalogEntry
from .gguf import Header, read_header
from .store import Store

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that can be served.

    `name`: what callers of the API say. `path`: the (first) GGUF file, absolute. `size`: bytes of all its files.
    `digest`: sha256 of the (first) file, None for a file that was named by path and never hashed. `chat_template`: the
    template to use instead of the file's own. `context_length`: tokens the model was made for (0: it does not say).
    """

    name: str
    path: Path
    size: int
    digest: str | None
    header: Header
    chat_template: Path | None
    context_length: int


def from_entry(entry: CatalogEntry, store: Store) -> LocalModel:
    """The model of a catalogue entry whose files are all in the store."""
    path = store.path(entry.files[0])
    header = read_header(path)
    return LocalModel(
        name=entry.name,
        path=path,
        size=entry.size,
        digest=entry.files[0].sha256,
        header=header,
        chat_template=entry.template_path,
        context_length=header.context_length or entry.context_length,
    )


def from_path(path: Path, store: Store, catalog: Catalog | None = None) -> LocalModel:
    """The model in a file that was named by its path, called by the file's name.

    Raises InvalidModelFile, also for a file that is only a part of a model or something else than a language model,
    and UnknownModel where a part is missing.
    """
    header = read_header(path)
    if header.kind in ("adapter", "mmproj", "imatrix", "vocab") or header.architecture == "clip":
        raise InvalidModelFile(
            f"{path} holds no language model but {header.kind if header.kind != 'model' else 'a vision projector'}.",
            advice="Point to the GGUF file of the model itself.",
        )
    name, size = _whole(path, header)
    digest = store.known_digest(path)
    entry = (catalog or load()).with_digest(digest) if digest else None
    return LocalModel(
        name=name,
        path=path,
        size=size,
        digest=digest,
        header=header,
        chat_template=entry.template_path if entry else None,
        context_length=header.context_length,
    )


def _whole(path: Path, header: Header) -> tuple[str, int]:
    """The model's name and the bytes of all its parts."""
    match = _PART.fullmatch(path.name)
    if header.parts == 1 or match is None:
        return path.name.removesuffix(".gguf").removesuffix(".GGUF"), path.stat().st_size
    if header.part != 0:
        first = f"{match['stem']}-00001-of-{match['parts']}.gguf"
        raise InvalidModelFile(f"{path} is part {header.part + 1} of {header.parts}.", advice=f"Name {first} instead.")
    if header.parts > 999 or int(match["parts"]) != header.parts:
        raise InvalidModelFile(f"{path} says it has {header.parts} parts.", advice="Download it again.")
    size = 0
    for number in range(1, header.parts + 1):
        part = path.with_name(f"{match['stem']}-{number:05d}-of-{match['parts']}.gguf")
        if not part.is_file():
            raise UnknownModel(f"The part {part} is missing.", advice="Download all parts into one folder.")
        size += part.stat().st_size
    return match["stem"], size
