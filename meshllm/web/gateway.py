"""The gateway: the OpenAI- and Anthropic-compatible API on :9337.

Law: a request is read whole and understood before anything is done about it; `model` picks the target and an unknown
model is a 404; every answer that is not the engine's is a typed error in the caller's own API shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

import orjson

from meshllm import __version__
from meshllm.core import routing, serving
from meshllm.core.routing import Route, Standing, Target, TargetKind
from meshllm.core.types import Snapshot
from meshllm.errors import PortTaken
from meshllm.tasks import Owner
from meshllm.web.admission import TargetDesk
from meshllm.web.callers import CallerPolicy
from meshllm.web.exchange import Exchange
from meshllm.web.http1 import Connection, ConnectionSet
from meshllm.web.inquiry import Inquiry
from meshllm.web.metrics import CONTENT_TYPE, Metrics
from meshllm.web.requests import Request
from meshllm.web.upstream import UpstreamPool
from meshllm.wire.api_errors import error_body
from meshllm.wire.apis import ROUTES, Api, find_route, model_in_path

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
LISTEN_BACKLOG = 1024
# At the end of a close, for errors to be read by those who were not answered in time.
LAST_WORDS_SECONDS = 0.5
# Comparing a name with all that a big backend lists takes 0.3 s, in which nobody else is served.
MAX_NAMES_COMPARED = 100
MAX_MODEL_NAME = 512
JSON = "application/json"


class Gateway:
    """The API server. `publish` tells it what the core knows; `start` makes it listen."""

    def __init__(self, policy: CallerPolicy, backend_keys: Mapping[str, str] | None = None) -> None:
        """`backend_keys`: what to send as a bearer token, by backend URL."""
        self._policy = policy
        self._backend_keys = dict(backend_keys or {})
        self._snapshot = Snapshot()
        self._loop = asyncio.get_running_loop()
        self._owner = Owner("gateway")
        self._connections = ConnectionSet(self._wake)
        self._desks: dict[Target, TargetDesk] = {}
        self._routes: dict[str, tuple[Route, list[TargetDesk]]] = {}
        self.now = self._loop.time
        self._waiting: dict[Exchange, None] = {}
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = (0, b"")
        self.metrics = Metrics(lambda: self._snapshot, self._desks.values)

    # -- the daemon's side

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen on every one of `hosts`; returns the port (of use when `port` is 0). Raises PortTaken."""
        for host in hosts:
            try:
                server = await self._loop.create_server(self._connection, host, port, backlog=LISTEN_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and self._servers:
                    continue  # no IPv6 here
                await self.close()
                raise PortTaken(
                    f"Cannot listen on {host} port {port}: {error.strerror or error}.",
                    advice="Stop what uses it, or choose another with --port.",
                ) from error
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
        return port

    def publish(self, snapshot: Snapshot) -> None:
        """What the core knows now. Whoever waits looks again."""
        self._snapshot = snapshot
        self._routes.clear()
        # Not by asking for each model's route: two backends with 2,000 models each took 0.4 s, at every progress tick.
        current = {target for model in snapshot.models for target in routing.route(snapshot, model.name).targets}
        current |= {Target(TargetKind.BACKEND, backend.url) for backend in snapshot.backends if backend.healthy}
        for target in [t for t, desk in self._desks.items() if t not in current and not desk.active]:
            self._desks.pop(target).pool.close()
        for exchange in list(self._waiting):
            exchange.reconsider()

    async def close(self, grace: float = 0.0) -> None:
        """Stop listening; give answers in progress `grace` seconds, then hang up."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections.live):
            connection.retire()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._connections.empty.wait()
        # Those that still wait get an error, and a moment to read it.
        for connection in list(self._connections.live):
            connection.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS if grace else 0.0):
                await self._connections.empty.wait()
        for connection in list(self._connections.live):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._connections.empty.wait()
        for desk in self._desks.values():
            desk.pool.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._owner.close()
        for server in self._servers:
            await server.wait_closed()

    def all_desks(self) -> list[TargetDesk]:
        """The desks of all targets that have been asked, for the status."""
        return list(self._desks.values())

    # -- connections and time

    def _connection(self) -> Connection:
        return Connection(self, self._connections, self._loop)

    def _wake(self) -> None:
        # Not when a connection is created, some time before it counts as live: a sweep in between would be the last.
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._connections.sweep(self._loop.time())
        # Nobody there, nothing to do: an idle gateway does not wake up.
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._connections.live else None

    def date(self) -> bytes:
        """The Date header's value, made once a second."""
        second = int(self._loop.time())
        if self._date[0] != second:
            self._date = (second, format_datetime(datetime.now(UTC), usegmt=True).encode())
        return self._date[1]

    # -- requests

    def on_refused(self, connection: Connection, path: str, status: int, message: str) -> None:
        """Answer what never became a request."""
        self._error(connection, _api_of(path), status, "bad_request", message)

    def on_request(self, connection: Connection, request: Request) -> Exchange | None:
        """Answer `request`, or begin to."""
        api = _api_of(request.path)
        refusal = self._policy.refuse(connection.peer, request.headers)
        # A browser that asks whether a page it shows may call has no key yet; the answer gives nothing away.
        if refusal is not None and not (request.method == "OPTIONS" and refusal.status == HTTPStatus.UNAUTHORIZED):
            log.info("refused %s %s from %s: %s", request.method, request.path, connection.peer, refusal.message)
            self._error(connection, api, refusal.status, refusal.code, refusal.message)
            return None
        cors = self._cors(request)
        if request.method == "OPTIONS":
            connection.send(204, "text/plain", b"", cors + _preflight(request))
            return None
        route = find_route(request.path)
        if route is not None and route.api is not Api.MODELS and request.method == route.method:
            return self._exchange(connection, request, route.api, route.path, cors)
        if request.method in ("GET", "HEAD"):
            self._get(connection, request, api, cors)
        elif route is None:
            self._error(connection, api, 404, "not_found", f"There is nothing at {request.path[:200]}.", cors)
        else:
            message = f"{request.path} takes {route.method}, not {request.method[:20]}."
            self._error(connection, api, 405, "method_not_allowed", message, f"allow: {route.method}\r\n{cors}")
        return None

    def _exchange(self, connection: Connection, request: Request, api: Api, path: str, cors: str) -> Exchange | None:
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            message = f"The body is not JSON: {error}." if request.body else "A JSON body is needed."
            self._error(connection, api, 400, "invalid_json", message, cors)
            return None
        if (problem := _problem(body)) is not None:
            parameter, message = problem
            self._error(connection, api, 400, "invalid_parameter", message + self._known(), cors, parameter)
            return None
        exchange = Exchange(self, connection, Inquiry(api, path, body, request.body, request.headers), cors)
        exchange.start()
        return exchange

    def _get(self, connection: Connection, request: Request, api: Api, cors: str) -> None:
        route = find_route(request.path)
        if route is not None and route.api is Api.MODELS:
            targets = routing.all_targets(self._snapshot)
            cards = [self._card(name, targets[name]) for name in targets]
            ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {}
            body: Any = {"object": "list", "data": cards, "has_more": False, **ends}
        elif (name := model_in_path(request.path)) is not None:
            if name not in routing.models(self._snapshot):
                self._error(connection, Api.MODELS, 404, "model_not_found", self._unknown(name), cors)
                return
            body = self._card(name, routing.route(self._snapshot, name).targets)
        elif request.path == "/metrics":
            connection.send(200, CONTENT_TYPE, self.metrics.text(), cors)
            return
        elif request.path in ("/health", "/v1/health"):
            body = {"status": "ok"}
        elif request.path == "/":
            body = {"name": "mesh-llm", "version": __version__, "api": "/v1", "models": "/v1/models"}
        elif route is not None:
            message = f"{request.path} takes {route.method}, not {request.method}."
            self._error(connection, api, 405, "method_not_allowed", message, f"allow: {route.method}\r\n{cors}")
            return
        else:
            self._error(connection, api, 404, "not_found", f"There is nothing at {request.path[:200]}.", cors)
            return
        connection.send(200, JSON, orjson.dumps(body), cors)

    def _card(self, name: str, targets: Iterable[Target]) -> dict[str, Any]:
        """A model as OpenAI's and Anthropic's clients both read it, and what we know besides, under `mesh`."""
        known: dict[str, Any] = {"phase": "serving"}
        here = self._snapshot.model(name)
        if here is not None:
            known["phase"] = serving.phase(self._snapshot.engine, here).value
            if here.facts is not None:
                known |= {"size": here.facts.size, "architecture": here.facts.architecture}
                known["purpose"] = here.facts.purpose.value
            if here.server_facts is not None:
                known |= {"context_length": here.server_facts.context_length, "slots": here.server_facts.slots}
        known["served_by"] = ["this node" if target.kind is TargetKind.ENGINE else target.address for target in targets]
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "mesh-llm",
            "type": "model",
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": known.get("context_length"),
            "mesh": known,
        }

    def _known(self) -> str:
        names = routing.models(self._snapshot)
        return f" Models here: {', '.join(names[:20])}." if names else " No model is served here yet."

    def _unknown(self, name: str) -> str:
        names = routing.models(self._snapshot)[:MAX_NAMES_COMPARED]
        close = difflib.get_close_matches(name[:MAX_MODEL_NAME], names, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"The model {name[:MAX_MODEL_NAME]!r} is not known here.{hint}{self._known()}"

    def _error(
        self,
        connection: Connection,
        api: Api,
        status: int,
        code: str,
        message: str,
        headers: str = "",
        parameter: str | None = None,
    ) -> None:
        self.metrics.count(api.value, "unknown", "refused", 0.0, None)
        error = error_body(api, status, code, message, param=parameter)
        connection.send(status, JSON, orjson.dumps(error), headers)

    def _cors(self, request: Request) -> str:
        origin = request.header(b"origin")
        return f"access-control-allow-origin: {origin}\r\nvary: origin\r\n" if origin else ""

    # -- what exchanges need

    def wall(self) -> int:
        """Seconds since the epoch."""
        return int(datetime.now(UTC).timestamp())

    def find(self, model: str) -> tuple[Route, list[TargetDesk]]:
        """Who can answer for `model` now, and their desks; found once per snapshot for models that are served."""
        found = self._routes.get(model)
        if found is None:
            route = routing.route(self._snapshot, model)
            if route.standing is Standing.UNKNOWN:
                route = replace(route, words=self._unknown(model))
            found = (route, [self._desk(target) for target in route.targets])
            if route.targets:
                self._routes[model] = found
        return found

    def _desk(self, target: Target) -> TargetDesk:
        desk = self._desks.get(target)
        if desk is None:
            desk = self._desks[target] = TargetDesk(target, UpstreamPool(target, self._loop))
        return desk

    def key_for(self, target: Target) -> str | None:
        """The key that a backend wants of us."""
        return self._backend_keys.get(target.address) if target.kind is TargetKind.BACKEND else None

    def connect(self, exchange: Exchange, pool: UpstreamPool) -> None:
        """Make a connection for `exchange`."""
        self._owner.start(self._connect(exchange, pool), "connect")

    async def _connect(self, exchange: Exchange, pool: UpstreamPool) -> None:
        try:
            connection = await pool.connect()
        except (OSError, ValueError) as error:  # a name that cannot be looked up is a ValueError
            exchange.not_connected(pool.target, f"cannot connect to it: {error or type(error).__name__}")
        else:
            exchange.connected(connection)

    def waits(self, exchange: Exchange, waiting: bool) -> None:
        """`exchange` wants to hear of changes, or no longer."""
        if waiting:
            self._waiting[exchange] = None
        else:
            self._waiting.pop(exchange, None)

    def ended(self, exchange: Exchange) -> None:
        """Count and, if something went wrong, log an exchange that is over."""
        now = self._loop.time()
        known = exchange.model in self._routes or exchange.model in routing.models(self._snapshot)
        first = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.began
        model = exchange.model if known else "unknown"
        self.metrics.count(exchange.api.value, model, exchange.outcome, now - exchange.began, first)
        if exchange.outcome in ("failed", "lost"):
            log.warning("%s %s: %s with %d", exchange.api.value, model, exchange.outcome, exchange.status)


def _api_of(path: str) -> Api:
    """Whose error shape suits a path, known or not."""
    route = ROUTES.get(path)
    if route is not None:
        return route.api
    return Api.MESSAGES if path.startswith("/v1/messages") else Api.CHAT


def _problem(body: object) -> tuple[str | None, str] | None:
    """What keeps a body from being a request for a model: the parameter, and a sentence."""
    if not isinstance(body, dict):
        return None, "The body must be a JSON object."
    model = body.get("model")
    if model is None:
        return "model", "Say which model: the parameter 'model' is missing."
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_NAME:
        return "model", f"The parameter 'model' must be a name of 1 to {MAX_MODEL_NAME} characters."
    if not isinstance(body.get("stream"), bool | None):
        return "stream", "The parameter 'stream' must be true or false."
    return None


def _preflight(request: Request) -> str:
    """What a browser asks before a page of this machine may call."""
    wanted = request.header(b"access-control-request-headers")
    return (
        "access-control-allow-methods: GET, POST, OPTIONS\r\n"
        f"access-control-allow-headers: {wanted or 'authorization, content-type'}\r\naccess-control-max-age: 600\r\n"
    )
