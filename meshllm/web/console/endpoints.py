"""The table of the console's endpoints, and the route that binds an endpoint to its handler.

The OpenAPI document is made from this table. To add an endpoint: declare it here, add it to ENDPOINTS, and pass a Route
with its handler to the Console.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from meshllm.core.board.service import BoardFacts, BoardNotice, BoardPage, ClaimAnswer, PostAnswer, ScrubPreview
from meshllm.core.memory.fit_preview import FitOutlook
from meshllm.core.snapshot import Purpose
from meshllm.web.console import board_models
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
    """A new invite: for how many seconds (0: a day), with which rights (none: all), for one node only or not, for how
    many days of membership (0: as usual for the rights), and a label for the list."""

    expires: float | None = 0
    rights: list[str] = []
    once: bool = False
    days: int = 0
    label: str = ""


class InviteAnswer(_Body):
    """An invite, when it expires (seconds since the epoch), its serial, by which it can be revoked, and its rights."""

    invite: str
    expires: int
    serial: str = ""
    rights: list[str] = []


class MemberFacts(_Body):
    """A member of the mesh; ids are hexadecimal, times in seconds since the epoch. `here`: this node."""

    node: str
    name: str
    rights: list[str]
    since: int
    expires: int
    inviter: str
    invite: str
    seen: int
    alive: bool
    here: bool


class MembersAnswer(_Body):
    """All members that this node knows. `upgraded`: the mesh key comes from a shared secret of an older version."""

    members: list[MemberFacts]
    upgraded: bool


class InviteFacts(_Body):
    """An invite that was made here: `by` whom, and the `nodes` that used it. `state`: open, used, expired, revoked, or
    void (the mesh has a new key)."""

    serial: str
    rights: list[str]
    expires: int
    lifetime: int
    once: bool
    by: str
    label: str
    nodes: list[str]
    state: str


class InvitesAnswer(_Body):
    """The invites that were made here, also those that are good for nothing any more."""

    invites: list[InviteFacts]


class RevokeRequest(_Body):
    """The serial of an invite, or the beginning of it."""

    serial: str


class RevokeAnswer(_Body):
    """The serial that was revoked."""

    serial: str


class ExpelRequest(_Body):
    """The name of a member, its id, or the beginning of its id."""

    node: str


class ExpelAnswer(_Body):
    """The member that was expelled. `rotated`: it held the mesh key, so the mesh has a new one."""

    node: str
    name: str
    rotated: bool


class RotateAnswer(_Body):
    """The mesh has a new key."""

    rotated: bool


class NodeKeyAnswer(_Body):
    """This node has a new key, and starts again as `node`."""

    node: str


class ModelRequest(_Body):
    """A model, as `--model` takes it."""

    model: str = Field(min_length=1, max_length=4096)


class LoadAnswer(_Body):
    """The model is being loaded, or is served already (`serves`). `snapshot`: of the status before."""

    model: str
    snapshot: int
    serves: bool


class DropAnswer(_Body):
    """The model that is no longer served, once its answers have ended."""

    model: str


class DiskModelFacts(_Body):
    """A complete model on the node's disk; `size` of its files in bytes."""

    name: str
    size: int


class CatalogModelFacts(_Body):
    """A model of the catalogue. `fit`: by a forecast for the memory that is free now, with `context_length` tokens, on
    so many `machines` like this one. `percent`: of its files, if they are here in part."""

    name: str
    size: int
    purpose: Purpose
    vision: bool
    license: str
    fit: FitOutlook
    context_length: int
    machines: int
    on_disk: bool
    percent: int


class LibraryAnswer(_Body):
    """The models that the owner can load (`disk`) and download (`catalog`)."""

    disk: list[DiskModelFacts]
    catalog: list[CatalogModelFacts]


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
    """One path of the console. `answer` is the model or dataclass of a JSON answer, None for another content type;
    `query` has the parameters of the URL.

    `owner_only`: served only with the run's token, on this machine; the handler is called for no other caller. All
    endpoints that change something or give a secret are. `owner_or_key`: on this machine likewise, and to other
    machines with the key. `open_to_all`: served to other machines without the key.
    """

    method: str
    path: str
    summary: str = ""
    answer: type[Any] | None = None
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    content_type: str = "application/json"
    owner_only: bool = False
    owner_or_key: bool = False
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
    "The status whenever it changes, as server-sent events called 'status'; and for those who may read the blackboard "
    "events called 'blackboard' when it has changed, with the cursor of the feed.",
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
MEMBERS: Final = ConsoleEndpoint("GET", "/api/members", "The members of the mesh.", MembersAnswer, owner_only=True)
INVITES: Final = ConsoleEndpoint(
    "GET", "/api/invites", "The invites that were made here, with their state.", InvitesAnswer, owner_only=True
)
REVOKE: Final = ConsoleEndpoint(
    "POST", "/api/invites/revoke", "Revokes an invite.", RevokeAnswer, RevokeRequest, owner_only=True
)
EXPEL: Final = ConsoleEndpoint(
    "POST", "/api/members/expel", "Expels a member for ever.", ExpelAnswer, ExpelRequest, owner_only=True
)
ROTATE: Final = ConsoleEndpoint(
    "POST", "/api/mesh/rotate-key", "Makes a new mesh key: all invites are void.", RotateAnswer, owner_only=True
)
ROTATE_NODE: Final = ConsoleEndpoint(
    "POST", "/api/node/rotate-key", "Gives this node a new key, so a new id.", NodeKeyAnswer, owner_only=True
)
DOWNLOADS: Final = ConsoleEndpoint(
    "POST",
    "/api/downloads",
    "Downloads a model; the progress is streamed as JSON lines.",
    body=DownloadRequest,
    content_type="application/x-ndjson",
    owner_only=True,
)
LOAD: Final = ConsoleEndpoint(
    "POST", "/api/models/load", "Begins to serve a model on this node.", LoadAnswer, ModelRequest, owner_only=True
)
DROP: Final = ConsoleEndpoint(
    "POST",
    "/api/models/drop",
    "Stops serving a model on this node, once its answers have ended.",
    DropAnswer,
    ModelRequest,
    owner_only=True,
)
ATTACH: Final = ConsoleEndpoint(
    "POST",
    "/api/attach",
    "Attaches a launcher of an agent, as long as the connection is open. A node that was started for launchers ends "
    "after the last one has gone.",
    content_type="text/plain",
    owner_only=True,
)
# POST: a browser says with it that the console's own page asks.
LIBRARY: Final = ConsoleEndpoint(
    "POST", "/api/models/library", "The models that can be loaded or downloaded.", LibraryAnswer, owner_only=True
)
# Spoken by agents, whose protocol describes itself. Checks its callers itself: token or key, on this machine.
MCP: Final = ConsoleEndpoint("POST", "/mcp", documented=False)
_BOARD: Final = "/api/blackboard"
BOARD_POST: Final = ConsoleEndpoint(
    "POST", f"{_BOARD}/post", "Posts a message.", PostAnswer, board_models.PostRequest, owner_only=True
)
BOARD_FEED: Final = ConsoleEndpoint(
    "GET",
    f"{_BOARD}/feed",
    "The messages, the newest first.",
    BoardPage,
    query=board_models.FeedParameters,
    owner_or_key=True,
)
BOARD_SEARCH: Final = ConsoleEndpoint(
    "GET",
    f"{_BOARD}/search",
    "The messages that have one of the words, the best first.",
    BoardPage,
    query=board_models.SearchParameters,
    owner_or_key=True,
)
BOARD_CLAIM: Final = ConsoleEndpoint(
    "POST",
    f"{_BOARD}/claim",
    "Acquires, renews or releases a claim.",
    ClaimAnswer,
    board_models.ClaimRequest,
    owner_only=True,
)
BOARD_CLAIMS: Final = ConsoleEndpoint(
    "GET",
    f"{_BOARD}/claims",
    "The claims that hold now.",
    board_models.ClaimsAnswer,
    query=board_models.ClaimsParameters,
    owner_or_key=True,
)
BOARD_ROOMS: Final = ConsoleEndpoint(
    "GET", f"{_BOARD}/rooms", "The rooms with messages.", board_models.RoomsAnswer, owner_or_key=True
)
BOARD_FACTS: Final = ConsoleEndpoint(
    "GET", f"{_BOARD}/facts", "Whether this node has a blackboard, and its state.", BoardFacts, owner_or_key=True
)
BOARD_RETRACT: Final = ConsoleEndpoint(
    "POST",
    f"{_BOARD}/retract",
    "Erases the text of a message of this node on all nodes.",
    board_models.RetractAnswer,
    board_models.RetractRequest,
    owner_only=True,
)
BOARD_PREVIEW: Final = ConsoleEndpoint(
    "POST",
    f"{_BOARD}/preview",
    "What posting would make of a text. Nothing is posted.",
    ScrubPreview,
    board_models.PreviewRequest,
    owner_only=True,
)
BOARD_NOTICE: Final = ConsoleEndpoint(
    "POST",
    f"{_BOARD}/notice",
    "How many messages name a reader that it was not told of yet; it counts as told then.",
    BoardNotice,
    board_models.NoticeRequest,
    owner_only=True,
)
OPENAPI: Final = ConsoleEndpoint("GET", "/api/openapi.json", "This document.")

ENDPOINTS: Final = (
    STATUS,
    EVENTS,
    REQUESTS,
    INVITE,
    INVITES,
    REVOKE,
    MEMBERS,
    EXPEL,
    ROTATE,
    ROTATE_NODE,
    KEY,
    DOWNLOADS,
    LOAD,
    DROP,
    ATTACH,
    LIBRARY,
    BOARD_POST,
    BOARD_FEED,
    BOARD_SEARCH,
    BOARD_CLAIM,
    BOARD_CLAIMS,
    BOARD_ROOMS,
    BOARD_FACTS,
    BOARD_RETRACT,
    BOARD_PREVIEW,
    BOARD_NOTICE,
    OPENAPI,
)
