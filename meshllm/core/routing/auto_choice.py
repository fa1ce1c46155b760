"""Chooses the model of a request for `auto`: by what the request needs, among what the mesh serves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meshllm.core.routing import routes
from meshllm.core.routing.agent_choice import AUTO, AgentModel, preference, tool_rank
from meshllm.core.routing.model_names import ModelNames
from meshllm.core.routing.routes import BACKEND, ENGINE, MeshIndex, TargetKind, TargetOffer
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelPhase, ModelState, Purpose, Snapshot

_COMING = (ModelPhase.WAITING, ModelPhase.FETCHING, ModelPhase.LOADING, ModelPhase.RESTARTING)
# Backends do not say what their models are for, nor does a node that has a model only on its disk.
_EMBEDS, _RERANKS = "embed", "rerank"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request needs of a model. `tokens`: its prompt and its answer, estimated."""

    purpose: Purpose = Purpose.GENERATE
    vision: bool = False
    tools: bool = False
    tokens: int = 0


def served_models(snapshot: Snapshot, index: MeshIndex) -> list[AgentModel]:
    """The models that have a host, those that this node is about to serve, and those that a request loads."""
    on_request = {*snapshot.available, *index.loaders}
    found = []
    for name, offers in routes.all_offers(snapshot, index).items():
        here = snapshot.model(name)
        phase = None if here is None else next_step.phase(snapshot.engine, here)
        coming = here is not None and here.wanted and phase in _COMING
        if offers or coming or phase is ModelPhase.AVAILABLE or name in on_request:
            owned = name in snapshot.available or any(loader.owned for loader in index.loaders.of(name))
            found.append(_model(name, offers, here, owned=owned))
    return found


def _model(name: str, offers: Sequence[TargetOffer], here: ModelState | None, *, owned: bool) -> AgentModel:
    """`owned`: a machine of the owner has it on its disk."""
    facts = here.facts if here is not None else None
    engine = next((offer for offer in offers if offer.target.kind is ENGINE), None)
    loads = [offer for offer in offers if offer.load is not None and offer.target.slots]
    local = any(offer.target.kind is not TargetKind.PEER for offer in offers)
    rtts = [offer.rtt for offer in offers if offer.rtt is not None]
    reported = [offer.vision for offer in offers if offer.vision is not None]
    return AgentModel(
        name,
        context=max((offer.context_length for offer in offers), default=0),
        size=facts.size if facts is not None else max((offer.size for offer in offers), default=0),
        tools=engine.template.tools and facts is not None and facts.template if engine is not None else None,
        free_slots=sum(_free(offer) for offer in loads) if loads else None,
        rtt_ms=0.0 if local else min(rtts) * 1000 if rtts else None,
        loaded=any(offer.loaded for offer in offers),
        purpose=facts.purpose if facts is not None else _purpose(name, offers),
        vision=facts.vision if facts is not None else any(reported) if reported else None,
        owned=owned or local or here is not None or any(offer.owned for offer in offers),
        calls_tools=calls_tools(offers),
    )


def calls_tools(offers: Iterable[TargetOffer]) -> bool | None:
    """Whether a model calls tools, as its hosts found out or were told (None: none of them knows): as the first that
    knows it says, since hosts may have other files by the same name."""
    return next((offer.calls_tools for offer in offers if offer.calls_tools is not None), None)


def _free(offer: TargetOffer) -> int:
    load = offer.load
    return 0 if load is None else max(0, offer.target.slots - load.active - load.waiting)


def _purpose(name: str, offers: Sequence[TargetOffer]) -> Purpose | None:
    stated = next((offer.purpose for offer in offers if offer.purpose is not None), None)
    if stated is not None or not all(offer.target.kind is BACKEND for offer in offers):
        return stated
    folded = name.casefold()
    return Purpose.RERANK if _RERANKS in folded else Purpose.EMBED if _EMBEDS in folded else None


def is_auto(asked: str, names: ModelNames, snapshot: Snapshot) -> bool:
    """Whether a caller who asks for `asked` leaves the choice to the mesh.

    Not if it is the owner's alias, or names a model of this node or of its backends. A peer's model does not count: any
    member can serve a model by any name, and would get the prompts of all who leave the choice.
    """
    if len(asked) != len(AUTO) or asked.casefold() != AUTO or names.meant(asked) != asked:
        return False
    return not is_here(names.find(asked), snapshot)


def is_here(name: str, snapshot: Snapshot) -> bool:
    """Whether a model of this node or of its backends has exactly that name."""
    return snapshot.model(name) is not None or any(name in backend.models for backend in snapshot.backends)


def suits(model: AgentModel, needs: Needs) -> bool:
    """Whether `model` may be able to answer. Its context is only a preference: the tokens are an estimate."""
    purpose = model.purpose or Purpose.GENERATE
    return purpose is needs.purpose and not (needs.vision and model.vision is False)


def choose(models: Iterable[AgentModel], needs: Needs) -> AgentModel | None:
    """The best of `models` for a request, or None if none of them suits.

    In this order: a context that holds the request; images, if it has some, rather than unknown; tools, if it has some;
    a machine of the owner, because others may claim any size; a model in memory; then as for an agent
    (`agent_choice.preference`), without regard to contexts.
    """
    suitable = [model for model in models if suits(model, needs)]
    return min(suitable, key=lambda model: _rank(model, needs), default=None)


def holds(model: AgentModel, needs: Needs) -> bool:
    """Whether the context of `model` holds the request; True if it is unknown."""
    return not 0 < model.context < needs.tokens


def _rank(model: AgentModel, needs: Needs) -> tuple[int | float | str, ...]:
    holding = holds(model, needs)
    return (
        not holding,
        0 if holding else -model.context,
        needs.vision and model.vision is not True,
        tool_rank(model) if needs.tools else 0,
        not model.owned,
        not model.loaded,
        *preference(model, tools=False, least=0, wanted=0),
    )


def none_suits(models: Sequence[AgentModel], needs: Needs) -> str:
    """For a caller: why there is no choice, and what there is."""
    what = {Purpose.GENERATE: "generates text", Purpose.EMBED: "makes embeddings", Purpose.RERANK: "reranks"}
    wanted = what[needs.purpose] + (" and accepts images" if needs.vision else "")
    if not models:
        return "'auto' has no model to choose from: no node of the mesh serves one."
    among = "the one served" if len(models) == 1 else f"the {len(models)} served"
    return f"'auto' found no model that {wanted} among {among}. See purpose and input_modalities in /v1/models."


def with_more_context(models: Iterable[AgentModel], purpose: Purpose, tokens: int, limit: int) -> list[AgentModel]:
    """The models for `purpose` whose context holds `tokens` (at least more than `limit`), the largest context first."""
    least = max(tokens, limit + 1)
    found = [model for model in models if model.context >= least and suits(model, Needs(purpose))]
    return sorted(found, key=lambda model: (-model.context, model.name))
