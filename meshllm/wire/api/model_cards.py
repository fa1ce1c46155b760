"""Reads the body of `GET /v1/models` of a mesh-llm node: the models that an agent could use. Pure; bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.core.routing.agent_choice import AgentModel
from meshllm.wire.api.strict_json import loads_object

MAX_CARDS = 10_000
MAX_NAME = 512


def read_model_cards(
    body: bytes, tools: Mapping[str, bool] | None = None, speeds: Mapping[str, float] | None = None
) -> tuple[AgentModel, ...]:
    """The generating models that have a host, or that a request loads. `tools`: what is known of their chat templates,
    by name; `speeds`: tokens per second of their last answers.

    Raises ValueError for a body that is not a list of models.
    """
    cards = (loads_object(body) or {}).get("data")
    if not isinstance(cards, list):
        raise ValueError("no list of models")
    found = [_read(card, tools or {}, speeds or {}) for card in cards[:MAX_CARDS] if isinstance(card, dict)]
    return tuple(model for model in found if model is not None)


def _read(card: dict[str, Any], tools: Mapping[str, bool], speeds: Mapping[str, float]) -> AgentModel | None:
    """The model of a card; None for one that writes no texts, that no node has, or whose name cannot be shown."""
    name, mesh = card.get("id"), card.get("mesh")
    if not isinstance(name, str) or not isinstance(mesh, dict):
        return None
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        return None
    hosts = [host for host in _list(mesh.get("hosts")) if isinstance(host, dict)]
    available = not hosts and mesh.get("phase") == "available"
    if not (hosts or available) or mesh.get("purpose", "generate") != "generate":
        return None
    distances = [0.0 if host.get("kind") != "peer" else _float(host.get("rtt_ms")) for host in hosts]
    calls = mesh.get("calls_tools")
    known = [distance for distance in distances if distance is not None]
    return AgentModel(
        name,
        context=_whole(card.get("max_input_tokens")) or _whole(mesh.get("context_length")),
        size=_whole(mesh.get("size")),
        tools=tools.get(name),
        free_slots=_free_slots(hosts),
        rtt_ms=min(known, default=None),
        loaded=not available and mesh.get("loaded") is not False,
        calls_tools=calls if isinstance(calls, bool) else None,
        chat_template=mesh.get("chat_template") is not False,
        speed=speeds.get(name),
        trained=_whole(meta.get("n_ctx_train")) if isinstance(meta := card.get("meta"), dict) else 0,
    )


def _free_slots(hosts: list[dict[str, Any]]) -> int | None:
    """The slots of all hosts without a request; None if no host reports its load."""
    reports = [host for host in hosts if "active" in host and _whole(host.get("slots"))]
    if not reports:
        return None
    used = [_whole(host.get("active")) + _whole(host.get("waiting")) for host in reports]
    return sum(max(0, _whole(host.get("slots")) - busy) for host, busy in zip(reports, used, strict=True))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None
