"""The models of the whole mesh, as `/v1/models` lists them and as errors name them.

Pure. What peers say is bounded before it is repeated.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from meshllm.core.routing import routes
from meshllm.core.routing.routes import MeshIndex, TargetKind, TargetOffer
from meshllm.core.serving import next_step
from meshllm.core.snapshot import Snapshot
from meshllm.web.gateway.api_request import MAX_MODEL_NAME

# Comparing a name with all that a big backend lists takes 0.3 s, in which nobody else is served.
MAX_NAMES_COMPARED = 100
MAX_NAMES_TOLD = 20
# What a list may hold, whatever peers claim to serve.
MAX_LISTED = 10_000
MAX_HOSTS_LISTED = 32


def model_list(snapshot: Snapshot, index: MeshIndex) -> dict[str, Any]:
    """The body of `GET /v1/models`: what is here, what peers serve, what others say is served, what is only wanted."""
    offers = routes.all_offers(snapshot, index)
    names = list(dict.fromkeys([*offers, *sorted(index.unverified), *routes.wanted(snapshot, index)]))[:MAX_LISTED]
    cards = [_card(snapshot, name, offers.get(name, ()), index) for name in names]
    ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {}
    return {"object": "list", "data": cards, "has_more": False, **ends}


def model_card(snapshot: Snapshot, index: MeshIndex, name: str) -> dict[str, Any] | None:
    """The body of `GET /v1/models/NAME`; None if there is no such model."""
    known = name in index.unverified or name in routes.wanted(snapshot, index)
    if not known and name not in routes.models(snapshot, index):
        return None
    return _card(snapshot, name, routes.route(snapshot, name, index).offers, index)


def _card(snapshot: Snapshot, name: str, offers: Sequence[TargetOffer], index: MeshIndex) -> dict[str, Any]:
    """A model as OpenAI's and Anthropic's clients both read it, and what we know besides, under `mesh`."""
    # "heard of": others say that somebody serves it; the first request for it finds out (`Route.seek`).
    known: dict[str, Any] = {"phase": "serving" if offers else "heard of" if name in index.unverified else "wanted"}
    here = snapshot.model(name)
    if here is not None:
        known["phase"] = next_step.phase(snapshot.engine, here).value
        if here.facts is not None:
            known |= {"size": here.facts.size, "architecture": here.facts.architecture}
            known["purpose"] = here.facts.purpose.value
            known["input_modalities"] = modalities(here.facts.vision)
        if here.server_facts is not None:
            known |= {"context_length": here.server_facts.context_length, "slots": here.server_facts.slots}
    if offers and offers[0].target.kind is TargetKind.PEER:
        known |= _of_peers(offers, known)
    known["served_by"] = [offer.name for offer in offers[:MAX_HOSTS_LISTED]]
    known["hosts"] = [_host(offer) for offer in offers[:MAX_HOSTS_LISTED]]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mesh-llm",
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": max((offer.context_length for offer in offers), default=0) or known.get("context_length"),
        "mesh": known,
    }


def _of_peers(offers: Sequence[TargetOffer], known: dict[str, Any]) -> dict[str, Any]:
    """What can be said of a model that only peers serve."""
    found: dict[str, Any] = {"phase": "serving", "context_length": max(offer.context_length for offer in offers)}
    found["slots"] = sum(offer.target.slots for offer in offers)
    size = max(offer.size for offer in offers)
    purpose = next((offer.purpose for offer in offers if offer.purpose is not None), None)
    if size and "size" not in known:
        found["size"] = size
    if purpose is not None and "purpose" not in known:
        found["purpose"] = purpose.value
    told = [offer.vision for offer in offers if offer.vision is not None]
    if told and "input_modalities" not in known:
        found["input_modalities"] = modalities(any(told))
    return found


def modalities(sees: bool) -> list[str]:
    """What a model takes, in the words that other programs have for it."""
    return ["text", "image"] if sees else ["text"]


def _host(offer: TargetOffer) -> dict[str, Any]:
    """One that serves a model: who it is, and what it takes."""
    target = offer.target
    host: dict[str, Any] = {"kind": target.kind.value, "name": offer.name}
    if target.kind is TargetKind.PEER:
        host |= {"name": offer.name.rpartition(" (")[0], "node": target.address[:10]}
        host["rtt_ms"] = None if offer.rtt is None else round(offer.rtt * 1000, 1)
    host |= {"context_length": offer.context_length or None, "slots": target.slots or None}
    if offer.load is not None:
        host |= {"active": offer.load.active, "waiting": offer.load.waiting}
    return host


def known_words(snapshot: Snapshot, index: MeshIndex) -> str:
    """Which models there are, as the end of a sentence."""
    names = routes.models(snapshot, index)
    if not names:
        return " No model is served here yet."
    more = f" and {len(names) - MAX_NAMES_TOLD} more" if len(names) > MAX_NAMES_TOLD else ""
    where = "in the mesh" if index.hosts else "here"
    return f" Models {where}: {', '.join(names[:MAX_NAMES_TOLD])}{more}."


def unknown_words(snapshot: Snapshot, name: str, index: MeshIndex) -> str:
    """That there is no model `name`, which one may be meant, and which ones there are."""
    names = routes.models(snapshot, index)[:MAX_NAMES_COMPARED]
    close = difflib.get_close_matches(name[:MAX_MODEL_NAME], names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"The model {name[:MAX_MODEL_NAME]!r} is not known here.{hint}{known_words(snapshot, index)}"
