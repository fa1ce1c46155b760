"""The models of a mesh in the shapes of Ollama's `/api/tags`, `/api/show` and `/api/ps`. Pure.

Made from the cards of `/v1/models`. What no node says of a model is left out, or has the value that means so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshllm.core.routing.ollama_names import quantization_at_end

API_VERSION = "0.12.6"
"""The version of Ollama whose API this is. Clients compare it, and refuse to work with an old one."""
NEVER = "9999-12-31T23:59:59Z"
"""When a model is unloaded that stays in memory, or of which no node says when."""
EPOCH = "1970-01-01T00:00:00Z"
"""When a model was changed: no node says."""
UNKNOWN = "unknown"
# A model without a host cannot be asked; one that failed or that is wanted only has none.
_USABLE = frozenset(("waiting", "fetching", "loading", "serving", "restarting", "available", "heard of"))
_SIZE = re.compile(r"(?:^|[-_. :])((?:\d{1,3}x)?\d{1,4}(?:\.\d{1,3})?[BM])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What this node's file of a model says: the quantization and the SHA-256 (hexadecimal), "" if unknown.
    `expires`: when the model is unloaded, as RFC 3339 writes a time (NEVER: also if it is not known)."""

    quantization: str = ""
    digest: str = ""
    expires: str = NEVER


NO_FACTS = FileFacts()


def version_body(version: str) -> dict[str, Any]:
    """The body of `/api/version`; `version`: of mesh-llm."""
    return {"version": API_VERSION, "mesh_llm_version": version}


def tags_body(cards: Sequence[Mapping[str, Any]], facts: Mapping[str, FileFacts]) -> dict[str, Any]:
    """The body of `/api/tags`: the models that can be asked. `facts`: by name, of those whose file is here."""
    return {"models": [_entry(card, facts) for card in cards if card["mesh"]["phase"] in _USABLE]}


def ps_body(cards: Sequence[Mapping[str, Any]], facts: Mapping[str, FileFacts]) -> dict[str, Any]:
    """The body of `/api/ps`: the models in memory."""
    return {"models": [_running(card, facts) for card in cards if card["mesh"].get("loaded")]}


def show_body(card: Mapping[str, Any], facts: FileFacts, template: str = "") -> dict[str, Any]:
    """The body of `/api/show`. The context is the one that is served."""
    mesh, name = card["mesh"], card["id"]
    architecture = mesh.get("architecture") or UNKNOWN
    info: dict[str, Any] = {"general.architecture": architecture, "general.basename": name}
    parameters = ""
    if context := _context(card):
        info[f"{architecture}.context_length"] = context
        parameters = f"num_ctx                        {context}"
    if count := _parameter_count(_parameter_size(name)):
        info["general.parameter_count"] = count
    return {
        "modelfile": f"# Served by mesh-llm\nFROM {name}\n",
        "parameters": parameters,
        "template": template,
        "details": _details(card, facts),
        "model_info": info,
        "capabilities": _capabilities(mesh),
        "modified_at": EPOCH,
    }


def _entry(card: Mapping[str, Any], facts: Mapping[str, FileFacts]) -> dict[str, Any]:
    name = card["id"]
    known = facts.get(card["mesh"].get("alias_of") or name, NO_FACTS)
    return {
        "name": name,
        "model": name,
        "modified_at": EPOCH,
        "size": card["mesh"].get("size") or 0,
        "digest": known.digest,
        "details": _details(card, known),
    }


def _running(card: Mapping[str, Any], facts: Mapping[str, FileFacts]) -> dict[str, Any]:
    entry = _entry(card, facts)
    del entry["modified_at"]
    expires = facts.get(card["mesh"].get("alias_of") or card["id"], NO_FACTS).expires
    # Which part of it is in a GPU, no node says: `size_vram` is left out.
    return {
        **entry,
        "expires_at": expires,
        "context_length": _context(card),
    }


def _context(card: Mapping[str, Any]) -> int:
    return card.get("max_input_tokens") or card["mesh"].get("context_length") or 0


def _details(card: Mapping[str, Any], facts: FileFacts) -> dict[str, Any]:
    family = card["mesh"].get("architecture") or ""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _parameter_size(card["id"]),
        "quantization_level": facts.quantization or quantization_at_end(card["id"]) or UNKNOWN,
    }


def _parameter_size(name: str) -> str:
    """The number of parameters that a model's name states ("8B"); "" if it states none."""
    found = _SIZE.search(name)
    return found[1].upper().replace("X", "x") if found is not None else ""


def _parameter_count(size: str) -> int:
    if not size or "x" in size:
        return 0
    return round(float(size[:-1]) * (1_000_000_000 if size[-1] == "B" else 1_000_000))


def _capabilities(mesh: Mapping[str, Any]) -> list[str]:
    """What the model can be asked for. Tools are offered to every model that writes texts: as text, where its template
    has no place for them. Not to one that made no call in its test."""
    purpose = mesh.get("purpose", "generate")
    if purpose == "embed":
        return ["embedding"]
    if purpose != "generate":
        return []
    seeing = ["vision"] if "image" in (mesh.get("input_modalities") or ()) else []
    tools = ["tools"] if mesh.get("calls_tools") is not False else []
    return ["completion", *tools, *seeing]
