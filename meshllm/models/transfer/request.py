"""What a download request names: the models to fetch, and the files of them that are missing on this disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshllm.errors import UsageError
from meshllm.models.catalog.catalog import load
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.catalog.resolve import resolve
from meshllm.models.library import scan
from meshllm.models.library.store import Store


def requested_models(name: str, store: Store, *, draft: bool) -> tuple[list[Wanted], str]:
    """The model called `name`, with `draft` also its draft model; and a note on how the name was understood ("": none).

    Raises what `resolve` raises, and UsageError if `draft` and the catalogue has no draft model for it. Blocks.
    """
    found = resolve(name, folder=store.folder, disk=lambda: scan.scan(store))
    if not draft:
        return [found.wanted], found.note
    known = isinstance(found.wanted, CatalogEntry)
    paired = load().get(found.wanted.draft) if isinstance(found.wanted, CatalogEntry) and found.wanted.draft else None
    if paired is None:
        name = found.wanted.name
        why = "the catalogue lists none" if known else "the model is not in the catalogue"
        raise UsageError(
            f"No draft model is known for {name}: {why}.",
            advice="Leave out --draft. A node automatically uses a small model with the same tokenizer from this disk.",
        )
    return [found.wanted, paired], found.note


def missing_files(wanted: Sequence[Wanted], store: Store) -> Mapping[str, int]:
    """Sizes in bytes of the files that are not on this disk, by name, as far as they are known. Blocks."""
    manifests = [manifest for model in wanted if (manifest := store.manifest_of(model)) is not None]
    files = [file for manifest in manifests for file in manifest.all_files]
    return {file.name: file.size for file in files if not store.is_verified(file)}


def is_complete(wanted: Sequence[Wanted], store: Store) -> bool:
    """Whether every file of the models is known, on this disk and verified. Blocks."""
    manifests = [store.manifest_of(model) for model in wanted]
    return all(
        manifest is not None and all(store.is_verified(file) for file in manifest.all_files) for manifest in manifests
    )
