"""The paths of Ollama's API that the gateway serves, and those that it refuses because a command does what they do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class OllamaApi(Enum):
    """What a path of Ollama's API does."""

    CHAT = "chat"
    GENERATE = "generate"
    EMBED = "embed"
    EMBEDDINGS = "embeddings"  # of one text, the older form
    TAGS = "tags"
    SHOW = "show"
    PS = "ps"
    VERSION = "version"
    PULL = "pull"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class OllamaRoute:
    """`methods`: those it accepts, the usual one first. `advice`: what to do instead, of a refused path."""

    api: OllamaApi
    methods: tuple[str, ...]
    advice: str = ""


PREFIX = "/api/"
_READ = ("GET", "HEAD")
_DROP = "'mesh-llm drop MODEL' frees its memory, and 'mesh-llm models remove NAME' deletes its file."
_BLOBS = OllamaRoute(
    OllamaApi.REFUSED, ("POST", "HEAD"), "Start the node with --model and the path of the GGUF file instead."
)
ROUTES: dict[str, OllamaRoute] = {
    "/api/chat": OllamaRoute(OllamaApi.CHAT, ("POST",)),
    "/api/generate": OllamaRoute(OllamaApi.GENERATE, ("POST",)),
    "/api/embed": OllamaRoute(OllamaApi.EMBED, ("POST",)),
    "/api/embeddings": OllamaRoute(OllamaApi.EMBEDDINGS, ("POST",)),
    "/api/tags": OllamaRoute(OllamaApi.TAGS, _READ),
    "/api/show": OllamaRoute(OllamaApi.SHOW, ("POST",)),
    "/api/ps": OllamaRoute(OllamaApi.PS, _READ),
    "/api/version": OllamaRoute(OllamaApi.VERSION, _READ),
    "/api/pull": OllamaRoute(
        OllamaApi.PULL, ("POST",), "'mesh-llm download NAME' downloads a model, and 'mesh-llm load NAME' serves it."
    ),
    "/api/push": OllamaRoute(
        OllamaApi.REFUSED, ("POST",), "The nodes of a mesh copy models of each other (mesh-llm --share)."
    ),
    "/api/create": OllamaRoute(
        OllamaApi.REFUSED,
        ("POST",),
        "Start the node with --model and the path of a GGUF file; --alias NAME=MODEL gives it another name.",
    ),
    "/api/copy": OllamaRoute(
        OllamaApi.REFUSED, ("POST",), "Start the node with --alias NAME=MODEL to give a model another name."
    ),
    "/api/delete": OllamaRoute(OllamaApi.REFUSED, ("DELETE", "POST"), _DROP),
}
"""Every path (without query string) and its route."""


def find_ollama_route(path: str) -> OllamaRoute | None:
    """The route of a path without query string; None if it is not of Ollama's API. The caller compares the method."""
    if not path.startswith(PREFIX):
        return None
    return ROUTES.get(path.rstrip("/")) or (_BLOBS if path.startswith("/api/blobs/") else None)
