"""The models of the whole mesh in `/v1/models` and in error messages. Pure; data of peers is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshllm.core.records import short
from meshllm.core.routing import route_texts, routes
from meshllm.core.routing.agent_choice import AUTO
from meshllm.core.routing.auto_choice import Needs, calls_tools, is_auto, served_models, suits
from meshllm.core.routing.model_names import ModelNames, quantization_at_end, without_quantization
from meshllm.core.routing.routes import MeshIndex, TargetKind, TargetOffer
from meshllm.core.serving import next_step
from meshllm.core.serving.placement import size_on_disk
from meshllm.core.snapshot import NO_TEMPLATE, ModelState, Snapshot
from meshllm.util.near_names import near_names
from meshllm.web.gateway.api_request import MAX_MODEL_NAME

# Comparing a name with all models of a large backend takes 0.3 s on the event loop.
MAX_NAMES_COMPARED = 100
MAX_NAMES_SHOWN = 20
# Bounds of the list, whatever peers claim to serve.
MAX_LISTED = 10_000
MAX_HOSTS_LISTED = 32
_STATUS = {"serving": "loaded", "loading": "loading", "restarting": "loading", "waiting": "loading", "failed": "failed"}


def model_list(snapshot: Snapshot, index: MeshIndex, aliases: Mapping[str, str], names: ModelNames) -> dict[str, Any]:
    """The body of `GET /v1/models`: models of this node, of peers, of unverified nodes, models that a request loads,
    and models only requested; last the owner's `aliases` of them."""
    offers = routes.all_offers(snapshot, index)
    listed = list(dict.fromkeys([*offers, *sorted(index.unverified), *routes.wanted(snapshot, index)]))[:MAX_LISTED]
    cards = {name: _card(snapshot, name, offers.get(name, ()), index) for name in listed}
    for alias in aliases:
        if (card := cards.get(names.find(alias))) is not None:
            cards[alias] = alias_card(card, alias)
    if is_auto(AUTO, names, snapshot) and (card := auto_card(snapshot, index)) is not None:
        cards.pop(AUTO, None)  # a peer's
        cards[AUTO] = card
    return _listed(list(cards.values()))


def auto_card(snapshot: Snapshot, index: MeshIndex) -> dict[str, Any] | None:
    """The card of `auto`, with the largest context that it can pick; None if there is nothing to pick."""
    choices = served_models(snapshot, index)
    if not choices:
        return None
    context = max((model.context for model in choices if suits(model, Needs())), default=0)
    sees = any(model.vision for model in choices)
    return {
        "id": AUTO,
        "object": "model",
        "created": 0,
        "owned_by": "mesh-llm",
        "type": "model",
        "display_name": "auto (picked for each session)",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "status": {"value": "loaded" if any(model.loaded for model in choices) else "unloaded"},
        "max_input_tokens": context or None,
        "meta": {"n_ctx": context} if context else {},
        "mesh": {"phase": "serving", "input_modalities": modalities(sees), "choices": len(choices)},
    }


def alias_card(card: dict[str, Any], alias: str) -> dict[str, Any]:
    """The card of a model by the owner's name for it."""
    return {**card, "id": alias, "display_name": alias, "mesh": {**card["mesh"], "alias_of": card["id"]}}


def _listed(cards: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {}
    return {"object": "list", "data": cards, "has_more": False, **ends}


def model_card(snapshot: Snapshot, index: MeshIndex, name: str) -> dict[str, Any] | None:
    """The body of `GET /v1/models/NAME`; None if there is no such model."""
    known = name in index.unverified or name in routes.wanted(snapshot, index)
    if not known and name not in routes.models(snapshot, index):
        return None
    offers = (*routes.offers_here(snapshot, name), *index.hosts.get(name, ()))
    return _card(snapshot, name, offers, index)


def _card(snapshot: Snapshot, name: str, offers: Sequence[TargetOffer], index: MeshIndex) -> dict[str, Any]:
    """A model in the shape that both OpenAI's and Anthropic's clients read; our own facts are under `mesh`."""
    # "heard of": an unverified node serves it; the first request dials that node (`ModelRoute.dial_hosts`).
    known: dict[str, Any] = {"phase": _phase_elsewhere(snapshot, name, offers, index)}
    here = snapshot.model(name)
    if here is not None:
        known["phase"] = next_step.phase(snapshot.engine, here).value
        if here.facts is not None:
            known |= {"size": here.facts.size, "architecture": here.facts.architecture}
            known["purpose"] = here.facts.purpose.value
            known["input_modalities"] = modalities(here.facts.vision)
            if here.facts.warning:
                known["warning"] = f"{name} has {here.facts.warning}"
        if (run := here.server_facts or here.last_run) is not None:
            known |= {"context_length": run.context_length, "slots": run.slots}
    # A model that is unloaded is loaded by the first request.
    known["loaded"] = any(offer.loaded for offer in offers)
    if offers and offers[0].target.kind is TargetKind.PEER:
        known |= _peer_facts(offers, known)
    if not offers and here is None:
        known |= _facts_on_disk(snapshot, name, index)
    known["calls_tools"] = calls_tools(offers)
    if offers and not any(offer.chat_template for offer in offers):
        known |= {"chat_template": False, "warning": f"{name} has {NO_TEMPLATE}"}
    known["served_by"] = [offer.name for offer in offers[:MAX_HOSTS_LISTED]]
    known["hosts"] = [_host(offer) for offer in offers[:MAX_HOSTS_LISTED]]
    context = max((offer.context_length for offer in offers), default=0) or known.get("context_length")
    # As llama.cpp spells it: agents read how much one request may use, and do not guess.
    meta = {"n_ctx": context} if context else {}
    if trained := trained_context(here, offers):
        meta["n_ctx_train"] = trained
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mesh-llm",
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        # As llama.cpp's router says it.
        "status": {"value": _STATUS.get(known["phase"], "unloaded")},
        "max_input_tokens": context,
        "meta": meta,
        "mesh": known,
    }


def trained_context(here: ModelState | None, offers: Sequence[TargetOffer]) -> int:
    """The context that a model was made for, in tokens, by its file here or by its hosts; 0 if it is not known."""
    if here is not None and here.facts is not None and here.facts.context_length:
        return here.facts.context_length
    return max((offer.trained for offer in offers), default=0)


def _phase_elsewhere(snapshot: Snapshot, name: str, offers: Sequence[TargetOffer], index: MeshIndex) -> str:
    """The state of a model that this node does not serve."""
    if offers:
        return "serving"
    if name in index.unverified:
        return "heard of"
    return "available" if name in snapshot.available or name in index.loaders else "wanted"


def _facts_on_disk(snapshot: Snapshot, name: str, index: MeshIndex) -> dict[str, Any]:
    """Facts of a model that is on the disks of nodes which load it when it is requested."""
    nodes = [loader.record for loader in index.loaders.of(name)][:MAX_HOSTS_LISTED]
    found: dict[str, Any] = {"on_disk_of": [record.name or short(record.node) for record in nodes]}
    if name in snapshot.available:
        found["on_disk_of"].insert(0, "this node")
        nodes += [snapshot.mesh.record] if snapshot.mesh is not None and snapshot.mesh.record is not None else []
    sizes = [size_on_disk(record, name) for record in nodes]
    return {**found, "size": max(sizes)} if any(sizes) else found


def _peer_facts(offers: Sequence[TargetOffer], known: dict[str, Any]) -> dict[str, Any]:
    """Facts of a model that only peers serve."""
    loaded = any(offer.loaded for offer in offers)
    found: dict[str, Any] = {
        "phase": "serving" if loaded else "available",
        "context_length": max(offer.context_length for offer in offers),
    }
    found["slots"] = sum(offer.target.slots for offer in offers)
    size = max(offer.size for offer in offers)
    purpose = next((offer.purpose for offer in offers if offer.purpose is not None), None)
    if size and "size" not in known:
        found["size"] = size
    if purpose is not None and "purpose" not in known:
        found["purpose"] = purpose.value
    reported = [offer.vision for offer in offers if offer.vision is not None]
    if reported and "input_modalities" not in known:
        found["input_modalities"] = modalities(any(reported))
    return found


def modalities(vision: bool) -> list[str]:
    """`input_modalities` as other servers spell them."""
    return ["text", "image"] if vision else ["text"]


def _host(offer: TargetOffer) -> dict[str, Any]:
    """A host of a model, and its limits."""
    target = offer.target
    host: dict[str, Any] = {"kind": target.kind.value, "name": offer.name}
    if target.kind is TargetKind.PEER:
        host |= {"name": offer.name.rpartition(" (")[0], "node": target.address[:10]}
        host["rtt_ms"] = None if offer.rtt is None else round(offer.rtt * 1000, 1)
    host |= {"context_length": offer.context_length or None, "slots": target.slots or None}
    if offer.load is not None:
        host |= {"active": offer.load.active, "waiting": offer.load.waiting}
    return host


def known_models_text(snapshot: Snapshot, index: MeshIndex, now: float, aliases: Mapping[str, str]) -> str:
    """The models of this node and the mesh, and who is away, as sentences to append to a message."""
    away = route_texts.away_text(snapshot.mesh, now)
    return f"{_known_models(snapshot, index, aliases)} {away}".rstrip()


def _known_models(snapshot: Snapshot, index: MeshIndex, aliases: Mapping[str, str]) -> str:
    found = routes.models(snapshot, index)
    known = ModelNames(found, {})
    # An alias of a model that no node has cannot be used.
    own = [f"{alias} (alias of {model})" for alias, model in aliases.items() if known.is_known(model)]
    names = [*own, *found]
    if not names:
        return " No model is served here now."
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    where = "in the mesh" if index.hosts else "here"
    return f" Models {where}: {', '.join(names[:MAX_NAMES_SHOWN])}{more}."


def _otherwise_quantized(snapshot: Snapshot, name: str, names: ModelNames) -> str:
    """That the model is there with another quantization than `name` states; "" if it is not."""
    asked = quantization_at_end(name)
    found = names.means(without_quantization(name)) if asked else ()
    if not found:
        return ""
    shown = [f"{model} ({stated})" if (stated := _quantization(snapshot, model)) else model for model in found]
    use = f"Use {found[0]}." if len(found) == 1 else "Use one of these names."
    return f"{name[:MAX_MODEL_NAME]!r} is not served as {asked}. Served: {', '.join(shown[:MAX_NAMES_SHOWN])}. {use}"


def _quantization(snapshot: Snapshot, model: str) -> str:
    """The quantization of a model, if its name does not say it already."""
    here = snapshot.model(model)
    return "" if here is None or here.facts is None or quantization_at_end(model) else here.facts.quantization


def unknown_model_message(
    snapshot: Snapshot, name: str, index: MeshIndex, now: float, names: ModelNames, aliases: Mapping[str, str]
) -> str:
    """The message for an unknown model `name`: that the owner dropped it, or a similar name; the known ones, and the
    members that are away; or that owners of other nodes did."""
    if text := route_texts.dropped_text(snapshot, name, now):
        return f"{text}{known_models_text(snapshot, index, now, aliases)}"
    if text := route_texts.unserved_text(name, index.unserved.get(name, ())):
        return f"{text}{known_models_text(snapshot, index, now, aliases)}"
    if several := names.candidates(name):
        shown = ", ".join(several[:MAX_NAMES_SHOWN])
        return f"{name[:MAX_MODEL_NAME]!r} can mean {shown}. Use one of these names."
    known = routes.models(snapshot, index)[:MAX_NAMES_COMPARED]
    if text := _otherwise_quantized(snapshot, name, names):
        return text
    close = near_names(name, known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Unknown model {name[:MAX_MODEL_NAME]!r}.{hint}{known_models_text(snapshot, index, now, aliases)}"
