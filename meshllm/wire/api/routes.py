"""The HTTP APIs that the gateway serves, and the paths of each.

Paths match exactly, but for repeated and trailing slashes. The engine gives some bare paths (`/completions`,
`/embeddings`) another meaning than OpenAI, so an alias is always rewritten to its canonical path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from meshllm.core.snapshot import Purpose

_SLASHES = re.compile(r"/{2,}")


class Api(Enum):
    """The API of a request; it determines the shape of answers and errors."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    COUNT_TOKENS = "count_tokens"  # Anthropic's
    INPUT_TOKENS = "input_tokens"  # the same for OpenAI's chat and responses
    MODELS = "models"

    # Plain attributes, because each request reads them several times: an enum's properties and hash are Python code.
    _value_: str
    anthropic: bool
    can_stream: bool
    purpose: Purpose | None

    def __init__(self, value: str) -> None:
        """`anthropic`: errors have Anthropic's shape, else OpenAI's. `can_stream`: `"stream": true` is valid.

        `purpose`: what a model must have for this API; None for any. The engine does not check enough: it lets
        embedding models chat, and reads uninitialised memory for a reranker that is asked for embeddings.
        """
        self.anthropic = value in ("messages", "count_tokens")
        self.can_stream = value in ("chat", "completions", "responses", "messages")
        purposes = {"embeddings": Purpose.EMBED, "rerank": Purpose.RERANK}
        self.purpose = Purpose.GENERATE if self.can_stream else purposes.get(value)


@dataclass(frozen=True)
class ApiRoute:
    """One endpoint: API, method, and the path upstream."""

    api: Api
    method: str
    path: str


_CANONICAL = (
    (Api.CHAT, "POST", "/v1/chat/completions"),
    (Api.COMPLETIONS, "POST", "/v1/completions"),
    (Api.RESPONSES, "POST", "/v1/responses"),
    (Api.MESSAGES, "POST", "/v1/messages"),
    (Api.EMBEDDINGS, "POST", "/v1/embeddings"),
    (Api.RERANK, "POST", "/v1/rerank"),
    (Api.COUNT_TOKENS, "POST", "/v1/messages/count_tokens"),
    (Api.INPUT_TOKENS, "POST", "/v1/chat/completions/input_tokens"),
    (Api.INPUT_TOKENS, "POST", "/v1/responses/input_tokens"),
    (Api.MODELS, "GET", "/v1/models"),
)


def _table() -> dict[str, ApiRoute]:
    table: dict[str, ApiRoute] = {}
    for api, method, path in _CANONICAL:
        route = ApiRoute(api, method, path)
        table[path] = route
        table[path.removeprefix("/v1")] = route
    table["/v1/reranking"] = table["/reranking"] = table["/v1/rerank"]
    return table


ROUTES: dict[str, ApiRoute] = _table()
"""Every served path (without query string), aliases included, and its route."""


def find_route(path: str) -> ApiRoute | None:
    """The route of a path without query string, or None. The caller compares `route.method` (405 if it differs).

    Clients whose base URL ends with a slash ask for `/v1//chat/completions`, others for `/v1/messages/`.
    """
    return ROUTES.get(path) or ROUTES.get(_SLASHES.sub("/", path).rstrip("/"))


def model_in_path(path: str) -> str | None:
    """The model of `GET /v1/models/NAME` (names may contain slashes), or None for another path."""
    for prefix in ("/v1/models/", "/models/"):
        if path.startswith(prefix) and len(path) > len(prefix):
            return unquote(path[len(prefix) :])
    return None
