"""The HTTP APIs callers speak to us, and which path means which.

Law: exact paths only; anything else is not ours. The engine gives some bare paths (`/completions`, `/embeddings`) a
meaning of its own that is not OpenAI's, so a bare alias is always rewritten to its canonical path before it is sent on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from meshllm.core.snapshot import Purpose


class Api(Enum):
    """What a request asks for; decides the shape of its answer and of its errors."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    COUNT_TOKENS = "count_tokens"  # Anthropic's
    INPUT_TOKENS = "input_tokens"  # the same for OpenAI's chat and responses
    MODELS = "models"

    @property
    def anthropic(self) -> bool:
        """Whether errors have Anthropic's shape; all others have OpenAI's."""
        return self in (Api.MESSAGES, Api.COUNT_TOKENS)

    @property
    def can_stream(self) -> bool:
        """Whether `"stream": true` means something here."""
        return self in (Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES)

    @property
    def purpose(self) -> Purpose | None:
        """What a model must be for to be asked this; None where it does not matter.

        The engine does not mind enough: it lets embedding models chat, and of a reranker that is asked for embeddings
        it reads, and tells, memory behind the one number that it has.
        """
        return _PURPOSES.get(self)


_PURPOSES = {
    **{api: Purpose.GENERATE for api in Api if api.can_stream},
    Api.EMBEDDINGS: Purpose.EMBED,
    Api.RERANK: Purpose.RERANK,
}


@dataclass(frozen=True)
class ApiRoute:
    """One endpoint: what it is, how it is called, and the path to call upstream."""

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
"""Every path that is served (no query string), aliases included, and its route."""


def find_route(path: str) -> ApiRoute | None:
    """The route of a path without its query string, or None. The caller compares `route.method` (405 if it differs)."""
    return ROUTES.get(path)


def model_in_path(path: str) -> str | None:
    """The model named by `GET /v1/models/NAME` (names may hold slashes), or None if the path is not of that form."""
    for prefix in ("/v1/models/", "/models/"):
        if path.startswith(prefix) and len(path) > len(prefix):
            return unquote(path[len(prefix) :])
    return None
