"""The gateway: the OpenAI- and Anthropic-compatible API on :9337.

Law: a request is read whole and understood before anything is done about it; `model` picks the target and an unknown
model is a 404; every answer that is not the engine's is a typed error in the caller's own API shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

import orjson

from meshllm import __version__
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import ModelLoad
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import Target, TargetKind
from meshllm.core.snapshot import Snapshot
from meshllm.errors import MeshError, port_taken
from meshllm.tasks import Owner
from meshllm.web.gateway.api_request import ApiRequest, api_of, problem_of
from meshllm.web.gateway.metrics import CONTENT_TYPE, Metrics
from meshllm.web.gateway.model_list import known_words, model_card, model_list, unknown_words
from meshllm.web.gateway.peer_endpoint import PeerEndpoints
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_log import RequestLog
from meshllm.web.gateway.response_writer import HOST_HEADER
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_table import Found, TargetTable
from meshllm.web.http.access_control import AccessPolicy
from meshllm.web.http.client import PeerConnector, UpstreamPool
from meshllm.web.http.parser import Request
from meshllm.web.http.server import Connection, ConnectionSet
from meshllm.wire.api.errors import error_body
from meshllm.wire.api.routes import Api, find_route, model_in_path

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
LISTEN_BACKLOG = 1024
# At the end of a close, for errors to be read by those who were not answered in time.
LAST_WORDS_SECONDS = 0.5
JSON = "application/json"


class Gateway:
    """The API server. `publish` tells it what the core knows; `start` makes it listen."""

    def __init__(
        self,
        policy: AccessPolicy,
        backend_keys: Mapping[str, str] | None = None,
        *,
        peers: PeerConnector | None = None,
        seek: Callable[[str], None] | None = None,
        on_loads: Callable[[tuple[ModelLoad, ...]], None] | None = None,
        on_work: Callable[[], None] | None = None,
        guesses: Callable[[], Mapping[str, DraftCounts]] = dict,
    ) -> None:
        """`backend_keys`: what to send as a bearer token, by backend URL. `peers` makes connections to peers.

        `seek` is told, at most once a second for each, of models that callers want and whose hosts are only heard of;
        `on_loads`, at most twice a second, how busy the models served here are, when that has changed; and `on_work`
        that requests of theirs began or ended. `guesses`: what became of tokens guessed ahead, by model.
        """
        self._policy = policy
        self._backend_keys = dict(backend_keys or {})
        self._loop = asyncio.get_running_loop()
        self._owner = Owner("gateway")
        self._connections = ConnectionSet(self._wake)
        self._desks = TargetTable(self._loop, peers, seek, on_loads, on_work)
        self.now = self._loop.time
        self._waiting: dict[ProxiedRequest, None] = {}
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = (0, b"")
        self.metrics = Metrics(lambda: self._desks.snapshot, self._desks.all, guesses)
        self.requests = RequestLog(self.now, lambda: datetime.now(UTC).timestamp())
        self._tunnels = PeerEndpoints(self, self._desks, self._wake, self._loop)

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
                raise port_taken(error, f"{host} port {port}", "--port") from error
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
        return port

    def page_at(self, port: int) -> None:
        """The console listens on `port`: its page may call."""
        self._policy = replace(self._policy, page_port=port)

    def publish(self, snapshot: Snapshot) -> None:
        """What the core knows now. Whoever waits looks again."""
        self._desks.publish(snapshot)
        for exchange in list(self._waiting):
            exchange.reconsider()

    def tunnel(self, peer: str) -> asyncio.Protocol:
        """The protocol for a stream that the authenticated `peer` (node id in hexadecimal) has opened to our API.

        It serves HTTP/1.1: POST to the model routes, answered by what this node itself serves. Everything else is
        refused; sizes, times and numbers are bounded, for each peer on its own.
        """
        return self._tunnels.open(peer)

    def loads(self) -> tuple[ModelLoad, ...]:
        """How busy the models are that this node's engine serves."""
        return self._desks.loads()

    async def close(self, grace: float = 0.0) -> None:
        """Stop listening; give answers in progress `grace` seconds, then hang up."""
        for server in self._servers:
            server.close()
        sets = self._tunnels.shut(self._connections)
        for connection in [connection for each in sets for connection in each.live]:
            connection.retire()
        await _emptied(sets, grace)
        # Those that still wait get an error, and a moment to read it.
        for connection in [connection for each in sets for connection in each.live]:
            connection.stop()
        await _emptied(sets, LAST_WORDS_SECONDS if grace else 0.0)
        for connection in [connection for each in sets for connection in each.live]:
            connection.abort()
        await _emptied(sets, LAST_WORDS_SECONDS)
        self._desks.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._owner.close()
        for server in self._servers:
            await server.wait_closed()

    def all_desks(self) -> list[TargetQueue]:
        """The desks of all targets that have been asked, for the status."""
        return list(self._desks.all())

    # -- connections and time

    def _connection(self) -> Connection:
        return Connection(self, self._connections, self._loop)

    def _wake(self) -> None:
        # Not when a connection is created, some time before it counts as live: a sweep in between would be the last.
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        self._connections.sweep(now)
        guests = self._tunnels.sweep(now)
        # Nobody there, nothing to do: an idle gateway does not wake up.
        busy = guests or bool(self._connections.live)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if busy else None

    def date(self) -> bytes:
        """The Date header's value, made once a second."""
        second = int(self._loop.time())
        if self._date[0] != second:
            self._date = (second, format_datetime(datetime.now(UTC), usegmt=True).encode())
        return self._date[1]

    # -- requests

    def on_rejected(self, connection: Connection, path: str, status: int, message: str) -> None:
        """Answer what never became a request."""
        self._error(connection, api_of(path), status, "bad_request", message)

    def on_request(self, connection: Connection, request: Request) -> ProxiedRequest | None:
        """Answer `request`, or begin to."""
        api = api_of(request.path)
        refusal = self._policy.refuse(connection.peer, request.headers, connection.at)
        # A browser that asks whether a page it shows may call has no key yet; the answer gives nothing away.
        if refusal is not None and not (request.method == "OPTIONS" and refusal.status == HTTPStatus.UNAUTHORIZED):
            log.info("refused %s %s from %s: %s", request.method, request.path, connection.peer, refusal.message)
            # A page that may call, but sends no key or a wrong one, is to read that.
            readable = self._cors(request) if refusal.status == HTTPStatus.UNAUTHORIZED else ""
            self._error(connection, api, refusal.status, refusal.code, refusal.message, readable)
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

    def _exchange(
        self, connection: Connection, request: Request, api: Api, path: str, cors: str
    ) -> ProxiedRequest | None:
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            message = f"The body is not JSON: {error}." if request.body else "A JSON body is needed."
            self._error(connection, api, 400, "invalid_json", message, cors)
            return None
        if (problem := problem_of(body)) is not None:
            parameter, message = problem
            message += known_words(self._desks.snapshot, self._desks.index)
            self._error(connection, api, 400, "invalid_parameter", message, cors, parameter)
            return None
        exchange = ProxiedRequest(self, connection, ApiRequest(api, path, body, request.body, request.headers), cors)
        exchange.start()
        return exchange

    def _get(self, connection: Connection, request: Request, api: Api, cors: str) -> None:
        route = find_route(request.path)
        desks = self._desks
        if route is not None and route.api is Api.MODELS:
            body: Any = model_list(desks.snapshot, desks.index)
        elif (name := model_in_path(request.path)) is not None:
            body = model_card(desks.snapshot, desks.index, name)
            if body is None:
                message = unknown_words(desks.snapshot, name, desks.index)
                self._error(connection, Api.MODELS, 404, "model_not_found", message, cors)
                return
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
        if not origin:
            return ""
        return (
            f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: {HOST_HEADER}\r\nvary: origin\r\n"
        )

    # -- what exchanges need

    def wall(self) -> int:
        """Seconds since the epoch."""
        return int(datetime.now(UTC).timestamp())

    @property
    def stickiness(self) -> SessionAffinity:
        """Who answered for which conversation."""
        return self._desks.stickiness

    def find(self, model: str) -> Found:
        """Who can answer for `model` now, and their desks."""
        return self._desks.find(model)

    def failed(self, desk: TargetQueue, now: float) -> None:
        """A request failed there: it rests, for everybody."""
        self._desks.failed(desk, now)

    def key_for(self, target: Target) -> str | None:
        """The key that a backend wants of us."""
        return self._backend_keys.get(target.address) if target.kind is TargetKind.BACKEND else None

    def connect(self, exchange: ProxiedRequest, pool: UpstreamPool) -> None:
        """Make a connection for `exchange`."""
        self._owner.start(self._connect(exchange, pool), "connect")

    async def _connect(self, exchange: ProxiedRequest, pool: UpstreamPool) -> None:
        try:
            connection = await pool.connect()
        except (OSError, ValueError, MeshError) as error:  # a name that cannot be looked up is a ValueError
            exchange.not_connected(pool, f"cannot connect to it: {error or type(error).__name__}")
        else:
            exchange.connected(connection)

    def waits(self, exchange: ProxiedRequest, waiting: bool) -> None:
        """`exchange` wants to hear of changes, or no longer."""
        if waiting:
            self._waiting[exchange] = None
        else:
            self._waiting.pop(exchange, None)

    def ended(self, exchange: ProxiedRequest) -> None:
        """Count and, if something went wrong, log an exchange that is over."""
        model = exchange.model if self._desks.is_known(exchange.model) else "unknown"
        self.metrics.count(exchange.api.value, model, exchange.outcome, *exchange.times())
        self.metrics.count_target(exchange.kind, exchange.outcome)
        if exchange.outcome in ("failed", "lost"):
            log.warning("%s %s: %s with %d", exchange.api.value, model, exchange.outcome, exchange.status)


async def _emptied(sets: list[ConnectionSet], seconds: float) -> None:
    """Until no connection is left in any of `sets`, or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for each in sets:
                await each.empty.wait()


def _preflight(request: Request) -> str:
    """What a browser asks before a page of this machine may call."""
    wanted = request.header(b"access-control-request-headers")
    return (
        "access-control-allow-methods: GET, POST, OPTIONS\r\n"
        f"access-control-allow-headers: {wanted or 'authorization, content-type'}\r\naccess-control-max-age: 600\r\n"
    )
