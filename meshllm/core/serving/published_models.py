"""What a node's record says of the models that it serves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from meshllm.core.records import MAX_BACKEND_MODELS, MAX_SERVED, ServedModel
from meshllm.core.snapshot import BackendState, ModelOrigin, ModelState, ServerPhase


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
                calls_tools=run.calls_tools,
                chat_template=not model.facts.warning,
                trained=model.facts.context_length,
            )
        )
    return found[:MAX_SERVED]


def published_backends(
    backends: Iterable[BackendState], served: Iterable[ServedModel], declared_tools: Mapping[str, bool]
) -> list[ServedModel]:
    """The models of `backends` that are not among `served`. `declared_tools`: whether they call tools, by name."""
    names = {model.name for model in served}
    pooled = [name for b in backends if b.healthy for name in b.models if name not in names]
    found = list(dict.fromkeys(pooled))[:MAX_BACKEND_MODELS]
    return [ServedModel(name, calls_tools=declared_tools.get(name)) for name in found]
