"""The table of the console's endpoints, and the route that binds an endpoint to its handler.

The OpenAPI document is made from this table. To add an endpoint: declare it here, add it to ENDPOINTS, and pass a Route
with its handler to the Console.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from meshllm.web.console.downloads import DownloadRequest
from meshllm.web.console.request_status import RequestsAnswer
from meshllm.web.console.status import NodeStatus

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Carries the token of the daemon's run, which is made at each start and kept in the home (daemon.json, mode 0600). Only
# the owner has it: no other user of the machine, and no web page, which could not send this header to another origin.
TOKEN_HEADER: Final = "x-mesh-llm-token"


class _Body(BaseModel):
    # `defer_build`: the validators are made at the first use, not when this module is imported.
    model_config = ConfigDict(defer_build=True)


class InviteOptions(_Body):
    """Lifetime of a new invite in seconds; 0: it does not expire."""

    expires: float | None = 0


class InviteAnswer(_Body):
    """An invite, and when it expires (seconds since the epoch; 0: never)."""

    invite: str
    expires: int


class KeyAnswer(_Body):
    """The API key that other machines send as 'Authorization: Bearer KEY', to the API and to the console."""

    key: str


class ErrorFacts(_Body):
    """An error: `code` for programs, `message` for people."""

    code: str
    message: str


class ErrorAnswer(_Body):
    """The body of every answer whose status is not 200."""

    error: ErrorFacts


@dataclass(frozen=True, slots=True)
class ConsoleEndpoint:
    """One path of the console. `answer` is the model of a JSON answer, None for another content type.

    `owner_only`: served only with the run's token, on this machine; the handler is called for no other caller. All
    endpoints that change something or give a secret are. `open_to_all`: served to other machines without the key.
    """

    method: str
    path: str
    summary: str = ""
    answer: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    content_type: str = "application/json"
    owner_only: bool = False
    open_to_all: bool = False
    documented: bool = True


@dataclass(frozen=True, slots=True)
class ConsoleRoute:
    """An endpoint and its handler."""

    endpoint: ConsoleEndpoint
    handler: Handler


INDEX: Final = ConsoleEndpoint("GET", "/", open_to_all=True, documented=False)
ASSET: Final = ConsoleEndpoint("GET", "/assets/{name}", open_to_all=True, documented=False)
STATUS: Final = ConsoleEndpoint("GET", "/api/status", "The status of this node.", NodeStatus)
EVENTS: Final = ConsoleEndpoint(
    "GET",
    "/api/events",
    "The status whenever it changes, as server-sent events called 'status'.",
    content_type="text/event-stream",
)
REQUESTS: Final = ConsoleEndpoint("GET", "/api/requests", "The last requests of the API.", RequestsAnswer)
INVITE: Final = ConsoleEndpoint(
    "POST",
    "/api/invite",
    "An invite to the mesh.",
    InviteAnswer,
    InviteOptions,
    owner_only=True,
)
KEY: Final = ConsoleEndpoint("POST", "/api/key", "The API key of --listen-all.", KeyAnswer, owner_only=True)
DOWNLOADS: Final = ConsoleEndpoint(
    "POST",
    "/api/downloads",
    "Downloads a model; the progress is streamed as JSON lines.",
    body=DownloadRequest,
    content_type="application/x-ndjson",
    owner_only=True,
)
OPENAPI: Final = ConsoleEndpoint("GET", "/api/openapi.json", "This document.")

ENDPOINTS: Final = (STATUS, EVENTS, REQUESTS, INVITE, KEY, DOWNLOADS, OPENAPI)
