"""The models that a node does not serve although it was to, or has their files: what it says of them in its record, so
that callers of other nodes hear the cause. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from meshllm.core.records import MAX_UNSERVED, UnservedCause, UnservedModel
from meshllm.core.serving import next_step
from meshllm.core.snapshot import EngineState, ModelPhase, ModelState

# Bytes of one reason: a sentence. Records are sent through the whole mesh.
MAX_REASON = 200
# Folders say more of a machine than other nodes need.
_FOLDERS: Final = re.compile(r"(?<![\w./])~?/(?:[^\s/:'\"]+/)+")


def unserved_models(
    engine: EngineState,
    models: Iterable[ModelState],
    avoided: Mapping[str, str],
    dropped: Collection[str],
    damaged: Mapping[str, str],
) -> tuple[UnservedModel, ...]:
    """What the record says. `avoided`: models of the mesh's demand that could not be served lately, with the causes;
    `dropped` by the owner; `damaged`: why the file of a model is of no use, by its name."""
    found: dict[str, UnservedModel] = {}
    for model in models:
        phase = next_step.phase(engine, model)
        if model.wanted and (phase is ModelPhase.FAILED or next_step.download_failed(model)):
            found[model.name] = UnservedModel(model.name, UnservedCause.FAILED, short(model.reason or engine.reason))
    for name, reason in avoided.items():
        found.setdefault(name, UnservedModel(name, UnservedCause.FAILED, short(reason)))
    for name, reason in damaged.items():
        found.setdefault(name, UnservedModel(name, UnservedCause.DAMAGED, short(reason)))
    for name in dropped:
        found.setdefault(name, UnservedModel(name, UnservedCause.DROPPED))
    return tuple(found.values())[:MAX_UNSERVED]


def short(reason: str) -> str:
    """`reason` without the folders of paths, in `MAX_REASON` bytes."""
    text = " ".join(_FOLDERS.sub("", reason).split())
    if len(text.encode()) <= MAX_REASON:
        return text
    return text.encode()[: MAX_REASON - 3].decode(errors="ignore").rstrip() + "..."
