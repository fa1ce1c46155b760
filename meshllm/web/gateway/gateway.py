"""The gateway: the OpenAI-, Anthropic- and Ollama-compatible API on :9337.

A request is received whole and parsed before anything else; `model` selects the target, and an unknown model is a 404.
Every error is in the shape of the caller's API.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
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
from meshllm.core.snapshot import Snapshot
from meshllm.errors import port_taken
from meshllm.tasks import Owner
from meshllm.web.gateway.api_request import api_label, api_of
from meshllm.web.gateway.auto_model import MODEL_HEADER
from meshllm.web.gateway.metrics import CONTENT_TYPE, Metrics, NodeCounters
from meshllm.web.gateway.model_list import alias_card, auto_card, model_card, model_list, unknown_model_message
from meshllm.web.gateway.ollama import OllamaEndpoint
from meshllm.web.gateway.ollama_caller import OllamaErrors
from meshllm.web.gateway.ollama_port import RUNNING, OllamaPort, is_answered
from meshllm.web.gateway.peer_endpoint import PeerEndpoints
from meshllm.web.gateway.proxy import Proxy
from meshllm.web.gateway.relay import HOST_HEADER
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_counts import RequestCounts
from meshllm.web.gateway.request_log import LOCAL_CALLER, MAX_TEXT, RequestLog, RequestTrace
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_table import TargetTable
from meshllm.web.http.access_control import AccessPolicy, CallerKind, Verdict
from meshllm.web.http.client import PeerConnector
from meshllm.web.http.connections import ConnectionSet, SharedConnections
from meshllm.web.http.parser import Request, RequestRejected
from meshllm.web.http.server import Application, CallerConnection, Connection
from meshllm.wire.api.ollama_routes import PREFIX as OLLAMA_PREFIX
from meshllm.wire.api.ollama_routes import ROUTES as OLLAMA_ROUTES
from meshllm.wire.api.ollama_routes import find_ollama_route
from meshllm.wire.api.routes import Api, find_route, model_in_path

SWEEP_SECONDS = 1.0
LISTEN_BACKLOG = 1024
# At the end of a close, for callers to read the errors of requests that were not answered in time.
ERROR_GRACE_SECONDS = 0.5
JSON = "application/json"
# The last one is asked by Claude Code when it starts.
HEALTH_PATHS = ("/health", "/v1/health", "/api/hello")
_LOCAL, _MODELS = CallerKind.LOCAL, Api.MODELS  # see `routes.ENGINE`
# What a page that may call can read although it is refused: its key is missing or wrong, or was wrong too often.
KEY_ERRORS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})


class Gateway:
    """The API server. `publish` gives it the core's state; `start` makes it listen.

    `requests`: the last requests that ended.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        backend_keys: Mapping[str, str] | None = None,
        *,
        peers: PeerConnector | None = None,
        on_dial: Callable[[str], None] | None = None,
        on_loads: Callable[[tuple[ModelLoad, ...]], None] | None = None,
        on_work: Callable[[], None] | None = None,
        on_requests: Callable[[Mapping[str, int]], None] | None = None,
        draft_counts: Callable[[], Mapping[str, DraftCounts]] = dict,
        counters: Callable[[], NodeCounters] | None = None,
        is_guest: Callable[[str], bool] = lambda peer: True,
        may_use: Callable[[str], bool] = lambda peer: False,
        only_from: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """`backend_keys`: the API keys of backends, by URL. `peers` opens connections to peers.

        `on_dial`: called with a requested model whose hosts are known by hearsay only, at most once a second for each.
        `on_loads`: called with the load of the engines here when it changes, at most twice a second. `on_work`: called
        when requests of theirs began or ended. `on_requests`: called with the number of callers' requests for each
        model since the last call, at most twice a second. `draft_counts`: draft and accepted tokens, by model.
        `counters`: what the daemon counts, for the metrics. `is_guest`: whether a peer (node id in hexadecimal) may use
        models only; it has smaller limits. `may_use`: whether it may use models at all.
        """
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._owner = Owner("gateway")
        # What a request awaits gives it the failure.
        self._steps = Owner("gateway steps", awaited=True)
        self._connections: SharedConnections[Connection] = SharedConnections(self._wake)
        self._table = TargetTable(self._loop, peers, on_dial, on_loads, on_work, only_from, aliases)
        self.now = self._loop.time
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = (0, b"")
        self._ending: list[ConnectionSet[Connection]] = []
        self._cut = 0
        self.metrics = Metrics(lambda: self._table.snapshot, self._table.all, draft_counts, counters)
        self._counts = RequestCounts(self._loop, on_requests)
        owners = self._owner, self._steps
        self._proxy = Proxy(self._loop, owners, self._table, self.metrics, backend_keys or {}, self._counts)
        self._ollama = OllamaEndpoint(self._proxy, self._table)
        self._peer_endpoints = PeerEndpoints(self._proxy, self.date, self._wake, self._loop, is_guest, may_use)

    # -- the daemon's side

    @property
    def requests(self) -> RequestLog:
        """The last requests that ended, of callers and of peers."""
        return self._proxy.recorder.log

    async def start(self, hosts: tuple[str, ...], port: int) -> int:
        """Listen on each of `hosts`; returns the port (useful when `port` is 0). Raises PortTaken."""
        return await self._listen(self, hosts, port, "--port")

    async def start_ollama_port(self, hosts: tuple[str, ...], port: int) -> int:
        """The same for a port with the APIs of Ollama and OpenAI alone, where Ollama's clients look by default."""
        return await self._listen(OllamaPort(self), hosts, port, "--ollama-port")

    async def _listen(self, application: Application, hosts: tuple[str, ...], port: int, option: str) -> int:
        opened = False
        for host in hosts:
            try:
                server = await self._loop.create_server(
                    lambda: Connection(application, self._connections, self._loop), host, port, backlog=LISTEN_BACKLOG
                )
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and opened:
                    continue  # this machine has no IPv6
                await self.close()
                raise port_taken(error, host, port, option) from error
            opened = True
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
        return port

    def page_at(self, port: int) -> None:
        """The console listens on `port`: its page may call the API."""
        self._policy = replace(self._policy, page_port=port)

    def publish(self, snapshot: Snapshot) -> None:
        """Take over a new state of the core; waiting requests look for a target again."""
        self._table.publish(snapshot)
        self._proxy.reconsider()

    def tunnel(self, peer: str) -> asyncio.Protocol:
        """The protocol for a stream that the authenticated `peer` (node id in hexadecimal) has opened to the API.

        It serves HTTP/1.1: POST to the model routes, answered by targets of this node. Everything else is refused;
        sizes, times and numbers are bounded for each peer.
        """
        return self._peer_endpoints.open(peer)

    def unknown_aliases(self) -> dict[str, str]:
        """The owner's aliases whose models are neither served nor on a disk of the mesh, as far as is known."""
        names = self._table.names
        return {alias: model for alias, model in self._table.aliases.items() if not names.is_known(alias)}

    def loads(self) -> tuple[ModelLoad, ...]:
        """The active and waiting requests of each engine here."""
        return self._table.loads()

    def is_busy(self, model: str, generation: int) -> bool:
        """Whether the engine process of `model` with that generation has a request."""
        return self._table.is_busy(model, generation)

    def had_guest(self, model: str, generation: int) -> bool:
        """Whether the engine process of `model` with that generation has had a request of a guest."""
        return self._table.had_guest(model, generation)

    async def close(self, grace: float = 0.0, on_wait: Callable[[int], None] = lambda answers: None) -> int:
        """Stop listening; give responses in progress `grace` seconds, then end them with errors.

        `on_wait` is called with the number of responses in progress. Returns how many did not end in time.
        """
        for server in self._servers:
            server.close()
        sets = self._ending = [self._connections, *self._peer_endpoints.shut()]
        for connection in [connection for each in sets for connection in each.live]:
            connection.retire()
        on_wait(_busy(sets))
        await _emptied(sets, grace)
        self.cut_answers()
        await _emptied(sets, ERROR_GRACE_SECONDS if grace else 0.0)
        for connection in [connection for each in sets for connection in each.live]:
            connection.abort()
        await _emptied(sets, ERROR_GRACE_SECONDS)
        self._counts.close()
        self._table.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._owner.close()
        await self._steps.close()
        for server in self._servers:
            await server.wait_closed()
        return self._cut

    def cut_answers(self) -> None:
        """End the responses in progress with errors, while `close` waits for them."""
        self._cut += _busy(self._ending)
        for connection in [connection for each in self._ending for connection in each.live]:
            connection.stop()

    def target_queues(self) -> list[TargetQueue]:
        """The queues of all targets that have been used, for the status."""
        return list(self._table.all())

    # -- connections and time

    def _wake(self) -> None:
        # Not when a connection is created, some time before it counts as live: a sweep in between would be the last.
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        # In their order, before the connections, which have none: the first that looks is the first in a queue.
        self._proxy.reconsider()
        self._connections.sweep(now)
        peers = self._peer_endpoints.sweep(now)
        # No timer runs while there are no connections: an idle gateway does not wake up.
        busy = peers or bool(self._connections.live)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if busy else None

    def date(self) -> bytes:
        """The Date header's value, computed once a second."""
        second = int(self._loop.time())
        if self._date[0] != second:
            self._date = (second, format_datetime(datetime.now(UTC), usegmt=True).encode())
        return self._date[1]

    # -- requests

    def judge(self, connection: Connection, headers: dict[bytes, bytes]) -> Verdict:
        """Whether the caller may call, by the head of its request."""
        return self._policy.judge(connection.peer, headers, connection.at)

    def on_rejected(
        self, connection: Connection, path: str, rejected: RequestRejected, headers: dict[bytes, bytes]
    ) -> None:
        """Send an error for bytes that never became a request."""
        local = connection.kind is CallerKind.LOCAL
        caller = LOCAL_CALLER if local else f"remote {connection.peer}"
        trace = RequestTrace(connection.request_id, api_label(path), path[:MAX_TEXT], caller, self.now())
        self._proxy.reject(
            connection if find_ollama_route(path) is None else OllamaErrors(connection),
            api_of(path),
            trace,
            rejected.status,
            rejected.code,
            rejected.message,
            self._cors(headers) if rejected.status in KEY_ERRORS else "",
            unrouted=True,
            admitted=local and not rejected.refused,
        )

    def on_request(
        self, connection: Connection, request: Request, *, ollama_port: bool = False
    ) -> ProxiedRequest | None:
        """Answer `request`, or begin to. `ollama_port`: it came to the port of `--ollama-port`."""
        route = find_route(request.path)
        api = route.api if route is not None else api_of(request.path)
        label = api._value_ if route is not None else api_label(request.path)
        verdict = request.verdict
        caller = LOCAL_CALLER if verdict.kind is _LOCAL else f"remote {connection.peer}"
        trace = RequestTrace(connection.request_id, label, request.path[:MAX_TEXT], caller, self.now())
        refusal = verdict.refusal
        # A browser's preflight request has no key yet, and its response reveals nothing.
        if refusal is not None and not (request.method == "OPTIONS" and refusal.status == HTTPStatus.UNAUTHORIZED):
            # A page that may call, but with a wrong key or none, must be able to read the error.
            readable = self._cors(request.headers) if refusal.status in KEY_ERRORS else ""
            self._proxy.reject(
                connection if find_ollama_route(request.path) is None else OllamaErrors(connection),
                api,
                trace,
                refusal.status,
                refusal.code,
                refusal.message,
                readable,
                unrouted=True,
                admitted=False,
            )
            return None
        cors = self._cors(request.headers) if b"origin" in request.headers else ""
        if request.method == "OPTIONS":
            self._proxy.recorder.answered(trace, 204)
            connection.send(204, "text/plain", b"", cors + _preflight(request))
            return None
        if ollama_port and self._answers_at_ollama_port(connection, request, api, trace, cors):
            return None
        if route is not None and route.api is not _MODELS and request.method == route.method:
            request.body = request.body.removeprefix(codecs.BOM_UTF8)  # PowerShell and .NET write one
            return self._proxy.start(connection, request, api, route.path, trace, cors=cors)
        if route is None and (ollama := find_ollama_route(request.path)) is not None:
            request.body = request.body.removeprefix(codecs.BOM_UTF8)
            return self._ollama.on_request(connection, request, ollama, trace, cors)
        if request.method in ("GET", "HEAD"):
            self._get(connection, request, api, trace, cors)
        elif route is None:
            self._not_found(connection, request, api, trace, cors)
        else:
            self._wrong_method(connection, request, api, trace, route.method, cors)
        return None

    def _get(self, connection: Connection, request: Request, api: Api, trace: RequestTrace, cors: str) -> None:
        route = find_route(request.path)
        table = self._table
        if route is not None and route.api is Api.MODELS:
            body: Any = model_list(table.snapshot, table.index, table.aliases, table.names)
        elif (name := model_in_path(request.path)) is not None:
            if table.is_auto(name):
                body = auto_card(table.snapshot, table.index)
            else:
                body = model_card(table.snapshot, table.index, table.name_of(name))
            if body is not None and name in table.aliases:
                body = alias_card(body, name)
            if body is None:
                now = self._loop.time()
                message = unknown_model_message(table.snapshot, name, table.index, now, table.names, table.aliases)
                self._proxy.reject(connection, Api.MODELS, trace, 404, "model_not_found", message, cors)
                return
        elif request.path == "/metrics":
            self._proxy.recorder.answered(trace, 200)
            connection.send(200, CONTENT_TYPE, self.metrics.text(), cors)
            return
        elif request.path in HEALTH_PATHS:
            body = {"status": "ok"}
        elif request.path == "/":
            body = {"name": "mesh-llm", "version": __version__, "api": "/v1", "models": "/v1/models"}
        elif route is not None:
            self._wrong_method(connection, request, api, trace, route.method, cors)
            return
        else:
            self._not_found(connection, request, api, trace, cors)
            return
        self._proxy.recorder.answered(trace, 200)
        connection.send(200, JSON, orjson.dumps(body), cors)

    def _answers_at_ollama_port(
        self, connection: Connection, request: Request, api: Api, trace: RequestTrace, cors: str
    ) -> bool:
        """Answer what that port answers otherwise than the API's: its root, and paths that are not there."""
        if request.path == "/" and request.method in ("GET", "HEAD"):
            self._proxy.recorder.answered(trace, 200)
            connection.send(200, "text/plain; charset=utf-8", RUNNING, cors)
        elif not is_answered(request.path):
            self._not_found(connection, request, api, trace, cors)
        else:
            return False
        return True

    def _not_found(self, connection: Connection, request: Request, api: Api, trace: RequestTrace, cors: str) -> None:
        message = f"Unknown path {request.path[:200]}. The API is at /v1 (see GET /v1/models)."
        caller: CallerConnection = connection
        if request.path.startswith(OLLAMA_PREFIX):
            message = f"Unknown path {request.path[:200]}. Of Ollama's API there are {', '.join(OLLAMA_ROUTES)}."
            caller = OllamaErrors(connection)
        self._proxy.reject(caller, api, trace, 404, "not_found", message, cors, unrouted=True)

    def _wrong_method(
        self, connection: Connection, request: Request, api: Api, trace: RequestTrace, allowed: str, cors: str
    ) -> None:
        message = f"{request.path} accepts {allowed}, not {request.method[:20]}."
        headers = f"allow: {allowed}\r\n{cors}"
        self._proxy.reject(connection, api, trace, 405, "method_not_allowed", message, headers, unrouted=True)

    def _cors(self, headers: Mapping[bytes, bytes]) -> str:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin:
            return ""
        return (
            f"access-control-allow-origin: {origin}\r\n"
            f"access-control-expose-headers: {HOST_HEADER}, {MODEL_HEADER}, x-request-id\r\nvary: origin\r\n"
        )


def _busy(sets: list[ConnectionSet[Connection]]) -> int:
    """The number of responses in progress."""
    return sum(connection.busy for each in sets for connection in each.live)


async def _emptied(sets: list[ConnectionSet[Connection]], seconds: float) -> None:
    """Wait until no connection is left in any of `sets`, at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for each in sets:
                await each.empty.wait()


def _preflight(request: Request) -> str:
    """The headers of a preflight response (CORS)."""
    requested = request.header(b"access-control-request-headers")
    return (
        "access-control-allow-methods: GET, POST, OPTIONS\r\n"
        f"access-control-allow-headers: {requested or 'authorization, content-type'}\r\n"
        "access-control-max-age: 600\r\n"
    )
