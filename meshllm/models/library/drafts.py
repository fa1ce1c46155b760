"""Finds a draft model for speculative decoding: the catalogue's, or a small local model with the same tokenizer.

Invariants: two models pair only if the vocabularies in their files do. Nothing is downloaded. A missing draft model is
no error, unless it was requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Final

from meshllm.core.memory.speculation import MOST_OF_TARGET
from meshllm.core.snapshot import Purpose
from meshllm.errors import MeshError, UsageError
from meshllm.models.catalog.catalog import Catalog, load
from meshllm.models.catalog.entry import Wanted
from meshllm.models.gguf.header import Header
from meshllm.models.gguf.purpose import usage
from meshllm.models.gguf.vocabulary import MAX_DIFFERENCE, VocabularyIdentity, read_vocabulary

from .local_model import LocalModel, from_path
from .store import Store

# Of several candidates the one closest to this share of the target's parameters: a much smaller one is rejected often,
# a much larger one is slow. Published pairs (0.5B for 7B to 32B, 1B for 70B) lie around it.
BEST_SHARE: Final = 1 / 30


@dataclass(frozen=True, slots=True)
class Pairing:
    """The draft model that was found, or the reason why there is none."""

    name: str = ""
    draft: LocalModel | None = None
    reason: str = ""


def check(target: LocalModel, draft: LocalModel) -> None:
    """Raises UsageError unless `draft` is a valid draft model for `target`, and InvalidModelFile. Reads both
    vocabularies."""
    if reason := _incompatibility(target.header, draft.header) or _identity(target).incompatibility(_identity(draft)):
        raise UsageError(
            f"{draft.name} cannot be the draft model of {target.name}: {reason}.",
            advice="Choose a smaller model of the same family with --draft, or leave it out.",
        )


def find(target: LocalModel, disk: Mapping[str, Wanted], store: Store, *, catalog: Catalog | None = None) -> Pairing:
    """The best draft model for `target` among the models of this `disk` (as `scan.scan` returns them). Blocks.

    The catalogue's pairing if that model is here; else one with at most a tenth of the target's parameters.
    """
    known = catalog or load()
    entry = known.get(target.name) or (known.with_digest(target.digest) if target.digest else None)
    identity: VocabularyIdentity | None = None
    missing = ""
    if entry is not None and entry.draft:
        if (paired := _named(entry.draft, disk, store)) is None:
            missing = f"{entry.draft}, its usual draft model, is not on this disk (`mesh-llm download {entry.draft}`)"
        elif _pairs(target, paired, _identity(target)):
            return Pairing(entry.draft, paired)
    if target.header.experts:
        # A mixture of experts reads more experts for each token that is verified.
        return Pairing(reason=missing or "speculative decoding gains little for a mixture of experts")
    for name, draft in _candidates(target, disk, store):
        identity = identity or _identity(target)
        if _pairs(target, draft, identity):
            return Pairing(name, draft)
    return Pairing(reason=missing or "no small model with the same tokenizer is on this disk")


def _candidates(target: LocalModel, disk: Mapping[str, Wanted], store: Store) -> list[tuple[str, LocalModel]]:
    """Candidates by their headers alone, the best first; each file once."""
    found: dict[Path, tuple[str, LocalModel]] = {}
    for name in disk:
        draft = _named(name, disk, store)
        if draft is not None and not _too_different(target.header, draft.header):
            found.setdefault(draft.path, (name, draft))
    best = log(target.header.parameters * BEST_SHARE) if found else 0.0
    return sorted(found.values(), key=lambda item: (abs(log(item[1].header.parameters) - best), item[0]))


def _too_different(target: Header, draft: Header) -> bool:
    """Whether the header alone excludes the draft model."""
    return (
        draft.parameters > target.parameters * MOST_OF_TARGET
        or draft.parameters <= 0
        or draft.tokenizer != target.tokenizer
        or abs(draft.vocabulary_size - target.vocabulary_size) > MAX_DIFFERENCE
        or bool(_incompatibility(target, draft))
    )


def _incompatibility(target: Header, draft: Header) -> str:
    """The reason in the headers why `draft` is unusable; "" if none."""
    if usage(draft).purpose is not Purpose.GENERATE or not draft.causal:
        return "it is not an autoregressive text model"
    if any(layer.state for layer in draft.shape.layers):
        return "its recurrent layers cannot be rolled back"
    if draft.parameters >= target.parameters:
        return "it is not smaller"
    return ""


def _pairs(target: LocalModel, draft: LocalModel, identity: VocabularyIdentity) -> bool:
    if draft.path == target.path or _incompatibility(target.header, draft.header):
        return False
    try:
        return not identity.incompatibility(_identity(draft))
    except MeshError:
        return False  # the error is reported when that model is served


def _identity(model: LocalModel) -> VocabularyIdentity:
    return read_vocabulary(model.path)


def load_complete(wanted: Wanted, store: Store) -> LocalModel | None:
    """The model, if it is complete and readable on this disk."""
    path = _path(wanted, store)
    try:
        return from_path(path, store) if path is not None else None
    except (MeshError, OSError):
        return None


def _named(name: str, disk: Mapping[str, Wanted], store: Store) -> LocalModel | None:
    return load_complete(disk[name], store) if name in disk else None


def _path(wanted: Wanted, store: Store) -> Path | None:
    """Path of its (first) file, if it is here."""
    if isinstance(wanted, Path):
        return wanted
    manifest = store.manifest_of(wanted)
    return store.path(manifest.files[0]) if manifest and store.has_size(manifest.files[0]) else None
