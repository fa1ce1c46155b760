"""What a node's record says of the models that it serves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from meshllm.core.records import MAX_SERVED, ServedModel
from meshllm.core.snapshot import ModelOrigin, ModelState, ServerPhase


def published_models(models: Iterable[ModelState], movable: str, pressed: Collection[str]) -> list[ServedModel]:
    """The `models` that are in memory, or are loaded again for a request: without slots, so that peers prefer a host
    that has the model loaded. `movable`: the one that the node may leave; `pressed`: those whose slots are taken."""
    found = []
    for model in models:
        loaded = model.server is ServerPhase.SERVING
        run = model.server_facts or model.last_run
        if not model.wanted or not (loaded or model.reloads) or model.facts is None or run is None:
            continue
        found.append(
            ServedModel(
                model.name,
                model.facts.purpose,
                run.context_length,
                run.slots * loaded,
                model.facts.size,
                model.facts.vision,
                on_demand=model.origin is ModelOrigin.MESH,
                movable=model.name == movable,
                pressed=model.name in pressed,
            )
        )
    return found[:MAX_SERVED]
