"""A model on this disk with its parsed header: what the engine is started with.

Invariants: a `LocalModel` has a header that was read and found valid.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.errors import InvalidModelFile, UnknownModel
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import TEMPLATES
from meshllm.models.catalog.names import model_name, part_of
from meshllm.models.gguf.header import Header, read_header, read_whole
from meshllm.models.hub.manifest import Manifest
from meshllm.models.hub.manifest_cache import MAX_FILES

from .store import Store

# The most files in which a projector is searched.
MAX_NEIGHBOURS: Final = 256


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that can be served.

    `name`: as API callers use it. `path`: the (first) GGUF file, absolute; `files`: all of them in order; `size`: their
    bytes. `digest`: sha256 of the (first) file, None if it was never hashed. `chat_template`: replaces the file's own.
    `context_length`: tokens the model was trained for (0: unknown). `projector`: the vision projector, if any.
    """

    name: str
    path: Path
    size: int
    digest: str | None
    header: Header
    chat_template: Path | None
    context_length: int
    files: tuple[Path, ...]
    projector: Path | None = None

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, in the file or beside it."""
        return self.chat_template is not None or bool(self.header.chat_template or self.header.tool_template)


def from_manifest(manifest: Manifest, store: Store) -> LocalModel:
    """The model whose files are all verified on this disk. Raises UnknownModel if one is missing, InvalidModelFile."""
    paths = store.find_together(manifest.files)
    projector = store.find_together((manifest.projector,)) if manifest.projector else ()
    if paths is None or projector is None:
        raise UnknownModel(f"{manifest.name} is not on this disk.", advice=f"`mesh-llm download {manifest.name}`.")
    header = read_whole(paths) if len(paths) > 1 else read_header(paths[0])
    return LocalModel(
        name=manifest.name,
        path=paths[0],
        size=sum(file.size for file in manifest.files),
        digest=manifest.files[0].sha256,
        header=header,
        chat_template=TEMPLATES / manifest.chat_template if manifest.chat_template else None,
        context_length=header.context_length or manifest.context_length,
        files=paths,
        projector=projector[0] if projector else None,
    )


def from_path(path: Path, store: Store, catalog: Catalog | None = None) -> LocalModel:
    """The model in a file named by its path; its name is the file's.

    Raises InvalidModelFile, also for a later part and for anything but a language model; UnknownModel if a part is
    missing.
    """
    header = read_header(path)
    if header.kind in ("adapter", "mmproj", "imatrix", "vocab") or header.architecture == "clip":
        raise InvalidModelFile(
            f"{path} contains no language model but {header.kind if header.kind != 'model' else 'a vision projector'}.",
            advice="Use the GGUF file of the model itself.",
        )
    files = _parts(path, header)
    digest = store.known_digest(path)
    entry = (catalog or load()).with_digest(digest) if digest else None
    return LocalModel(
        name=model_name(path.name),
        path=path,
        size=sum(file.stat().st_size for file in files),
        digest=digest,
        header=read_whole(files) if len(files) > 1 else header,
        chat_template=entry.template_path if entry else None,
        context_length=header.context_length,
        files=files,
        projector=_projector(path, digest, store),
    )


def _parts(path: Path, header: Header) -> tuple[Path, ...]:
    """The files of the model that `path` begins, in order."""
    part = part_of(path.name)
    if header.parts == 1:
        return (path,)
    if part is None:
        raise InvalidModelFile(
            f"{path} is part {header.part + 1} of {header.parts} of a split model, and its name does not say so.",
            advice=f"Give the parts their names back (NAME-00001-of-{header.parts:05d}.gguf and so on). "
            "Parts that were joined with `cat` are no model: join the original ones with `llama-gguf-split --merge`.",
        )
    if header.part != 0:
        raise InvalidModelFile(
            f"{path} is part {header.part + 1} of {header.parts}.", advice=f"Use {part.first} instead."
        )
    if header.parts > MAX_FILES or part.parts != header.parts or part.number != 1:
        raise InvalidModelFile(
            f"{path} claims {header.parts} parts, which its name does not match.",
            advice="Give the parts the names that they were made with, or download them again.",
        )
    begin, _, end = part.first.rpartition("-00001-of-")
    files = tuple(path.with_name(f"{begin}-{number:05d}-of-{end}") for number in range(1, header.parts + 1))
    for file in files:
        if not file.is_file():
            raise UnknownModel(f"The part {file} is missing.", advice="Download all parts into one folder.")
    return files


def _projector(path: Path, digest: str | None, store: Store) -> Path | None:
    """The projector downloaded with this file; else the only one in its folder, unless that is the store's top."""
    if digest is not None:
        for manifest in store.manifest_cache.manifests():
            if manifest.projector and manifest.files[0].sha256 == digest:
                found = store.find_together((manifest.projector,))
                return found[0] if found else None
    if path.parent == store.folder:
        return None
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(MAX_NEIGHBOURS), entries, strict=False)]
        near = [path.with_name(name) for name in names if "mmproj" in name.casefold() and name.endswith(".gguf")]
        return near[0] if len(near) == 1 and read_header(near[0]).architecture == "clip" else None
    except (OSError, InvalidModelFile):
        return None
