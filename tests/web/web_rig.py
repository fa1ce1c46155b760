"""Shared by the tests of `meshllm.web`: a bench with a gateway, scripted upstreams and a strict caller.

Nothing here sleeps until a fact holds (`Watch.until` waits for it). A bench that closes checks that nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import MeshId, ModelLoad, NodeId, NodeRecord, RecordVersion, Role, ServedModel
from meshllm.core.routing.routes import TargetKind, TargetOffer
from meshllm.core.snapshot import (
    BackendState,
    EnginePhase,
    EngineState,
    FilePhase,
    ModelState,
    ServerFacts,
    ServerPhase,
    Snapshot,
)
from meshllm.util.progress import Progress
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_log import Outcome, RequestTrace
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.access_control import AccessPolicy

# No test comes near it; a hang becomes a failure that names the line.
PATIENCE = 60.0


class Watch:
    """Facts that can be waited for: whoever changes one calls `notify`."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something changed."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Until `predicate` holds."""
        async with asyncio.timeout(PATIENCE):
            while not predicate():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)


class WatchedGateway(Gateway):
    """A gateway whose queue, connections and endings can be waited for."""

    def __init__(self, policy: AccessPolicy, backend_keys: Mapping[str, str] | None = None, **mesh: Any) -> None:
        # Every peer is a machine of the owner, unless a test says otherwise.
        rights = {"is_guest": lambda peer: False, "may_use": lambda peer: True}
        super().__init__(policy, backend_keys, **{**rights, **mesh})
        self.watch = Watch()
        self.outcomes: list[str] = []
        self.peer_outcomes: list[str] = []
        count = self.metrics.count_peer_request

        def count_peer_request(model: str, outcome: Outcome) -> None:
            count(model, outcome)
            self.peer_outcomes.append(outcome.value)
            self.watch.notify()

        self.metrics.count_peer_request = count_peer_request  # type: ignore[method-assign]
        proxy, recorder, table = self._proxy, self._proxy.recorder, self._table
        waits, ended, queue_of = proxy.waits, recorder.ended, table._queue

        def watched_waits(request: ProxiedRequest, waiting: bool) -> None:
            waits(request, waiting)
            self.watch.notify()

        def watched_ended(trace: RequestTrace, kind: TargetKind | None, *, from_peer: bool) -> None:
            ended(trace, kind, from_peer=from_peer)
            if not from_peer and trace.model:
                assert trace.outcome is not None
                self.outcomes.append(trace.outcome.value)
            self.watch.notify()

        def watched_queue(offer: TargetOffer, model: str) -> TargetQueue:
            queue = queue_of(offer, model)
            if queue not in watched:
                watched.add(queue)
                told, queue._on_change = queue._on_change, lambda: (told and told(), self.watch.notify())[1]
            return queue

        watched = set[TargetQueue]()
        proxy.waits = watched_waits  # type: ignore[method-assign]
        recorder.ended = watched_ended  # type: ignore[method-assign]
        table._queue = watched_queue  # type: ignore[method-assign]
        inner = self._connections.remove

        def remove(connection: Any) -> None:
            inner(connection)
            self.watch.notify()

        self._connections.remove = remove  # type: ignore[method-assign]

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot or a model."""
        return len(self._proxy.waiting)

    @property
    def active(self) -> int:
        """Slots in use, over all targets."""
        return sum(queue.active for queue in self.target_queues())

    @property
    def queued(self) -> int:
        """Exchanges in the queues of targets."""
        return sum(queue.waiting for queue in self.target_queues())

    @property
    def live(self) -> int:
        """Callers' connections."""
        return len(self._connections.live)

    @property
    def body_bytes(self) -> int:
        """What the bodies of callers take, and those of peers."""
        return self._connections.bodies.held + self._peer_endpoints._bodies.held

    @property
    def peer_requests(self) -> int:
        """Requests of peers at work here."""
        return sum(endpoint.active for endpoint in self._peer_endpoints._busy)

    @property
    def tunnels(self) -> int:
        """Connections of peers."""
        return sum(len(endpoint.connections.live) for endpoint in self._peer_endpoints._busy)


# -- upstream


@dataclass
class Call:
    """One request that an upstream has received, and the means to answer it."""

    upstream: Upstream
    head: bytes
    body: bytes
    connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    hung_up: bool = False

    @property
    def json(self) -> Any:
        """The request's body."""
        return json.loads(self.body)

    @property
    def path(self) -> str:
        """The path that was asked for."""
        return self.head.split(b" ")[1].decode()

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)

    def answer(
        self, body: bytes | object, status: int = 200, content_type: str = "application/json", more: str = ""
    ) -> None:
        """A whole answer with a length."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status} Whatever\r\ncontent-type: {content_type}\r\ncontent-length: {len(data)}\r\n{more}\r\n"
        )
        self.send(head.encode() + data)

    def begin_stream(self) -> None:
        """The head of a stream, as the engine sends it."""
        self.send(
            b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Type: text/event-stream\r\n"
            b"Server: llama.cpp\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        """A piece of a stream."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """The last chunk."""
        self.send(b"0\r\n\r\n")

    def stream(self, *events: bytes) -> None:
        """A whole stream."""
        self.begin_stream()
        for event in events:
            self.chunk(event)
        self.end_stream()

    def hang_up(self) -> None:
        """Close the connection, properly."""
        self.hung_up = True
        self.writer.close()

    def reset(self) -> None:
        """Break the connection."""
        self.hung_up = True
        self.writer.transport.abort()

    async def drained(self) -> None:
        """Everything sent is on its way."""
        await self.writer.drain()

    async def gone(self) -> None:
        """Until the other side has hung up."""
        self.hung_up = True
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(1 << 16):
                    pass


Script = Callable[[Call], Awaitable[None]]


class Upstream:
    """A server that answers as its `script` says; it is an engine (Unix socket) or a backend (TCP)."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.accepted = 0
        self.watch = Watch()
        self.address = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._dead = False

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._writers)

    async def engine(self, path: Path) -> str:
        """Listen as an engine does; returns the address."""
        self._server = await asyncio.start_unix_server(self._serve, path, backlog=512)
        self.address = str(path)
        return self.address

    async def backend(self) -> str:
        """Listen as a backend does; returns the URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._dead:  # its connection was under way when the process was killed
            writer.transport.abort()
            return
        self._tasks.add(task)
        self._writers.add(writer)
        self.accepted += 1
        number = self.accepted
        self.watch.notify()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                body = await reader.readexactly(int(found[1])) if found else b""
                call = Call(self, head, body, number, reader, writer)
                self.calls.append(call)
                self.watch.notify()
                await self.script(call)
                if call.hung_up:
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._tasks.discard(task)
            self.watch.notify()

    def hang_up_idle(self) -> None:
        """Close every connection, as a server does with idle ones."""
        for writer in self._writers:
            writer.close()

    async def die(self) -> None:
        """As a process does that is killed: nobody listens, every connection is closed."""
        self._dead = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# -- what upstreams say


def _event(value: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n".encode()


def chat_chunk(delta: object, finish: str | None = None) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def text_chunk(text: str, finish: str | None = None) -> bytes:
    """One event of a completion stream."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return _event({"id": "t1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})


DONE = b"data: [DONE]\n\n"
CHAT_STREAM = (
    chat_chunk({"role": "assistant", "content": None}),
    chat_chunk({"content": "Hello"}),
    chat_chunk({"content": " there"}),
    chat_chunk({}, "stop"),
    DONE,
)
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 0},
}
_RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress"}
_ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
_PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
STREAMS: dict[str, tuple[bytes, ...]] = {
    "/v1/chat/completions": CHAT_STREAM,
    "/v1/completions": (text_chunk("Hello"), text_chunk(" there"), text_chunk("", "stop"), DONE),
    "/v1/messages": (
        _event({"type": "message_start", "message": _MESSAGE}, "message_start"),
        _event(
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            "content_block_start",
        ),
        _event(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
            "content_block_delta",
        ),
        _event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
        _event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 2},
            },
            "message_delta",
        ),
        _event({"type": "message_stop"}, "message_stop"),
    ),
    "/v1/responses": (
        _event({"type": "response.created", "response": _RESPONSE}, "response.created"),
        _event({"type": "response.in_progress", "response": _RESPONSE}, "response.in_progress"),
        _event({"type": "response.output_item.added", "output_index": 0, "item": _ITEM}, "response.output_item.added"),
        _event({"type": "response.output_text.delta", **_PLACE, "delta": "Hello"}, "response.output_text.delta"),
        _event(
            {
                "type": "response.completed",
                "response": {**_RESPONSE, "status": "completed", "usage": {"input_tokens": 3, "output_tokens": 2}},
            },
            "response.completed",
        ),
    ),
}
STREAMING = tuple(STREAMS)
ENDS = {
    "/v1/chat/completions": DONE,
    "/v1/completions": DONE,
    "/v1/messages": b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    "/v1/responses": b"",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    },
    "/v1/completions": {"id": "t1", "object": "text_completion", "choices": [{"index": 0, "text": "Hello"}]},
    "/v1/responses": {"id": "resp_1", "object": "response", "status": "completed", "output": []},
    "/v1/messages": {"id": "msg_1", "type": "message", "content": [{"type": "text", "text": "Hello"}]},
    "/v1/embeddings": {"object": "list", "data": [{"index": 0, "embedding": [0.5]}]},
    "/v1/rerank": {"object": "list", "results": []},
    "/v1/messages/count_tokens": {"input_tokens": 3},
    "/v1/chat/completions/input_tokens": {"input_tokens": 3},
    "/v1/responses/input_tokens": {"input_tokens": 3},
}
PATHS = tuple(ANSWERS)


async def well(call: Call) -> None:
    """Answers everything as the engine does: it hangs up after a stream without having said so."""
    if call.json.get("stream") is True and call.path in STREAMS:
        call.stream(*STREAMS[call.path])
        call.hang_up()
    else:
        call.answer(ANSWERS[call.path])


async def never(call: Call) -> None:
    """Says nothing, until the other side hangs up."""
    await call.gone()


# -- what the core knows


READY = EngineState(EnginePhase.READY)


def served(name: str, address: str, *, generation: int = 1, slots: int = 4) -> ModelState:
    """A model that an engine process here serves."""
    return ModelState(
        name,
        file=FilePhase.READY,
        server=ServerPhase.SERVING,
        server_facts=ServerFacts(address, 1, slots, 4096),
        generation=generation,
    )


def coming(name: str, stage: str = "downloading") -> ModelState:
    """A model that is on its way."""
    return ModelState(name, file=FilePhase.FETCHING, progress=Progress.at(stage, 0.5))


def broken(name: str) -> ModelState:
    """A model that cannot be served."""
    return ModelState(name, file=FilePhase.FAILED, reason="The disk is full.", advice="Make room.")


def backend(url: str, *names: str) -> BackendState:
    """A backend that answers."""
    return BackendState(url, healthy=True, models=names, reason="")


# -- callers


class Truncated(AssertionError):
    """An answer ended before it was complete."""


class Malformed(AssertionError):
    """An answer is not HTTP/1.1 as it should be."""


_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]+")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~\x80-\xff]*)")


@dataclass
class Response:
    """An answer, complete."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunked: bool = False

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Caller:
    """One connection to a server, and a reader that forgives nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._chunked = False
        self._left = 0

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.writer.write(data)

    async def _line(self) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self.reader.readuntil(b"\r\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise EOFError from error
            raise Truncated(repr(error.partial)) from error
        return line[:-2]

    async def _exactly(self, count: int) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.reader.readexactly(count)
        except asyncio.IncompleteReadError as error:
            raise Truncated(repr(error.partial[-200:])) from error

    async def head(self, *, interim: bool = False) -> Response:
        """The status line and the headers. EOFError if the server hung up instead."""
        line = await self._line()
        if (found := _STATUS.fullmatch(line)) is None:
            raise Malformed(repr(line))
        headers: dict[str, str] = {}
        while line := await self._line():
            if (header := _HEADER.fullmatch(line)) is None:
                raise Malformed(repr(line))
            name = header[1].decode().lower()
            if name in headers:
                raise Malformed(f"{name} twice")
            headers[name] = header[2].decode("latin-1")
        status = int(found[1])
        if status < 200:
            return Response(status, headers) if interim else await self.head()
        self._chunked = headers.get("transfer-encoding") == "chunked"
        if self._chunked == ("content-length" in headers) and status != 204:
            raise Malformed(f"framing: {headers}")
        self._left = int(headers.get("content-length", 0))
        return Response(status, headers, chunked=self._chunked)

    async def piece(self) -> bytes:
        """The next chunk of the body; empty at its end."""
        if not self._chunked:
            data, self._left = await self._exactly(self._left), 0
            return data
        try:
            size = await self._line()
        except EOFError as error:
            raise Truncated("no last chunk") from error
        if not re.fullmatch(rb"[0-9a-f]+", size):
            raise Malformed(repr(size))
        data = await self._exactly(int(size, 16))
        if await self._exactly(2) != b"\r\n":
            raise Malformed("a chunk without its end")
        if not data:
            self._chunked = False
        return data

    async def response(self, method: str = "POST") -> Response:
        """A whole answer."""
        response = await self.head()
        if method == "HEAD":
            self._chunked, self._left = False, 0
            return response
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        response.body = b"".join(pieces)
        return response

    async def until(self, text: bytes) -> bytes:
        """The body of a stream, up to and with the chunk that holds `text`."""
        heard = b""
        while text not in heard:
            piece = await self.piece()
            if not piece:
                raise Truncated(f"{text!r} never came: {heard!r}")
            heard += piece
        return heard

    async def eof(self) -> bytes:
        """Until the server hangs up; what came before."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()


def request(
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    version: str = "1.1",
    host: str = "localhost",
) -> bytes:
    """A request as bytes; `body` is sent as JSON unless it is bytes."""
    lines = [f"{method} {path} HTTP/{version}"]
    if host:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


TOKEN = "token-of-this-run"
OWNER = {"x-mesh-llm-token": TOKEN}
"""The header that makes a caller of a console with `token=TOKEN` its owner."""


def owned(
    method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, *, host: str = "localhost"
) -> bytes:
    """A request of the owner to a console."""
    return request(method, path, body, {**OWNER, **(headers or {})}, host=host)


def ask(
    path: str = "/v1/chat/completions",
    model: str = "m",
    *,
    stream: bool = False,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> bytes:
    """A request for a model."""
    required = {"max_tokens": 64} if path.partition("?")[0].endswith("/messages") else {}
    return request("POST", path, {"model": model, "stream": stream, **required, **more}, headers)


# -- all together


@dataclass
class Bench:
    """A gateway that listens, and what stands around it."""

    gateway: WatchedGateway
    port: int
    folder: Path
    faults: list[str] = field(default_factory=list)
    upstreams: list[Upstream] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(engine=READY))
    node: NodeId = field(default_factory=lambda: NodeId(bytes(32)))

    async def engine(self, script: Script = well) -> Upstream:
        """A new upstream on a Unix socket."""
        upstream = Upstream(script)
        await upstream.engine(self.folder / f"{len(self.upstreams)}.sock")
        self.upstreams.append(upstream)
        return upstream

    async def backend(self, script: Script = well) -> Upstream:
        """A new upstream on a TCP port."""
        upstream = Upstream(script)
        await upstream.backend()
        self.upstreams.append(upstream)
        return upstream

    def publish(self, *models: ModelState, backends: tuple[BackendState, ...] = (), stopping: bool = False) -> None:
        """The gateway hears of a new state of the core."""
        self.snapshot = replace(
            self.snapshot, version=self.snapshot.version + 1, models=models, backends=backends, stopping=stopping
        )
        self.gateway.publish(self.snapshot)

    def meet(self, *peers: PeerView, phase: JoinPhase = JoinPhase.JOINED, wants: tuple[str, ...] = ()) -> None:
        """The gateway hears of these peers, and of no others."""
        mesh = MeshView(self.node, MeshId(bytes(16)), Role.NODE, phase, peers=peers)
        self.snapshot = replace(self.snapshot, version=self.snapshot.version + 1, mesh=mesh, wants=wants)
        self.gateway.publish(self.snapshot)

    async def serve(self, script: Script = well, *, slots: int = 4) -> Upstream:
        """An engine for the model `m`, published."""
        engine = await self.engine(script)
        self.publish(served("m", engine.address, slots=slots))
        return engine

    async def pool(self, script: Script = well) -> Upstream:
        """A backend for the model `m`, published."""
        upstream = await self.backend(script)
        self.publish(backends=(backend(upstream.address, "m"),))
        return upstream

    async def caller(self, limit: int = 1 << 20) -> Caller:
        """A new connection to the gateway."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        caller = Caller(reader, writer)
        self.callers.append(caller)
        return caller

    async def call(self, data: bytes, method: str = "POST") -> Response:
        """One request on a connection of its own, and its whole answer."""
        caller = await self.caller()
        caller.send(data)
        response = await caller.response(method)
        await caller.close()
        return response

    async def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        """One request without a body."""
        return await self.call(request(method, path, headers=headers), method)

    async def idle(self) -> None:
        """Until all callers are gone; then nothing may be held for them."""
        await self.gateway.watch.until(lambda: not self.gateway.live)
        await asyncio.sleep(0)  # a cancelled request ends in the loop's next turn, also one that was just let in
        self.nothing_held()

    def nothing_held(self) -> None:
        """No slot, no place in a queue, no byte of a body."""
        gateway = self.gateway
        held = (gateway.active, gateway.queued, gateway.waiting, gateway.body_bytes)
        assert held == (0, 0, 0, 0), f"active, queued, waiting, body bytes: {held}"

    async def close(self, grace: float = 0.0) -> None:
        """Close everything, and prove that nothing is left."""
        await self.gateway.close(grace)
        assert not self.gateway.live, "connections are open after the gateway has closed"
        self.nothing_held()
        for upstream in self.upstreams:
            # Whatever the gateway had open to it has been closed: no upstream has to be told.
            tasks = [task for task in upstream._tasks if not task.done()]
            if tasks:
                _, left = await asyncio.wait(tasks, timeout=PATIENCE)
                assert not left, f"{upstream.address} still has {len(left)} connections"
            await upstream.die()
        for caller in self.callers:
            await caller.close()
        left_over = [task for task in asyncio.all_tasks() if task.get_name().startswith("gateway")]
        assert not left_over, left_over
        assert not self.faults, "\n".join(self.faults)


class _Faults(logging.Handler):
    """Collects what asyncio and our own tasks complain about."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        self._faults.append(logging.Formatter().format(record))


@contextlib.asynccontextmanager
async def bench(
    folder: Path, policy: AccessPolicy | None = None, backend_keys: Mapping[str, str] | None = None, **mesh: Any
) -> AsyncIterator[Bench]:
    """A bench that listens on a port of its own."""
    faults: list[str] = []
    handler = _Faults(faults)
    loggers = [logging.getLogger("asyncio"), logging.getLogger("meshllm")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        gateway = WatchedGateway(policy or AccessPolicy(), backend_keys, **mesh)
        made = Bench(gateway, await gateway.start(("127.0.0.1",), 0), folder, faults)
        try:
            yield made
        finally:
            async with asyncio.timeout(PATIENCE):
                await made.close()
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


# -- several gateways


def node_id(number: int) -> NodeId:
    """Some node's id."""
    return NodeId(bytes([number]) * 32)


def host(
    node: NodeId,
    *serves: str | ServedModel,
    status: PeerStatus = PeerStatus.ALIVE,
    incarnation: int = 1,
    slots: int = 4,
    context: int = 4096,
    rtt: float | None = 0.001,
    loads: tuple[ModelLoad, ...] = (),
    wants: tuple[str, ...] = (),
) -> PeerView:
    """A peer that serves these models."""
    models = tuple(
        ServedModel(model, context_length=context, slots=slots) if isinstance(model, str) else model for model in serves
    )
    name = f"node{node[0]}"
    record = NodeRecord(node, RecordVersion(incarnation, 1), MeshId(bytes(16)), name, serves=models, wants=wants)
    return PeerView(record, status, linked=True, rtt=rtt, loads=loads)


class Roads:
    """Connects gateways in one process over pairs of sockets, as the mesh's transport does between machines."""

    def __init__(self) -> None:
        self.benches: dict[str, Bench] = {}
        self.made = 0
        self.refused = 0
        self.given_up = 0
        self.watch = Watch()
        self.closed: set[str] = set()
        # Who is being connected to, until the event is set.
        self.slow: dict[str, asyncio.Event] = {}
        self._ends: dict[str, set[asyncio.Transport]] = {}

    def connector(self, me: NodeId) -> Any:
        """What the gateway of `me` connects with."""
        return _Connector(self, me.hex())

    async def connect(self, me: str, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """A connection from `me` to `peer`."""
        if (slow := self.slow.get(peer)) is not None:
            try:
                await slow.wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        if peer in self.closed:
            self.refused += 1
            raise ConnectionRefusedError("there is no link")
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        gateway = self.benches[peer].gateway
        ends = self._ends.setdefault(peer, set())
        transport, _ = await loop.create_unix_connection(lambda: gateway.tunnel(me), sock=far)
        ends.add(transport)
        transport, protocol = await loop.create_unix_connection(factory, sock=near)
        ends.add(transport)
        self.made += 1
        self.watch.notify()
        return protocol

    def kill(self, peer: NodeId) -> None:
        """All links to `peer` are gone at once, and it cannot be reached any more."""
        self.closed.add(peer.hex())
        for end in self._ends.pop(peer.hex(), set()):
            end.abort()

    def close(self) -> None:
        """Hang up on all."""
        for ends in self._ends.values():
            for end in ends:
                end.abort()


class _Connector:
    """One gateway's way to the others."""

    def __init__(self, roads: Roads, me: str) -> None:
        self._roads = roads
        self._me = me

    async def connect(self, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """A stream into the gateway of `peer`."""
        return await self._roads.connect(self._me, peer, factory)


@dataclass
class Town:
    """Several benches, and the roads between them. The first is the one that is asked."""

    benches: list[Bench]
    roads: Roads
    sought: list[str] = field(default_factory=list)

    @property
    def here(self) -> Bench:
        """The one that is asked."""
        return self.benches[0]

    async def serve(self, number: int, script: Script = well, *, slots: int = 4) -> Upstream:
        """An engine for the model `m` at that bench."""
        return await self.benches[number].serve(script, slots=slots)


@contextlib.asynccontextmanager
async def town(folder: Path, count: int = 3) -> AsyncIterator[Town]:
    """So many benches; node `n` has the id `node_id(n)`."""
    roads, sought = Roads(), list[str]()
    async with contextlib.AsyncExitStack() as stack:
        benches = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir()
            connector = roads.connector(node_id(number))
            made = await stack.enter_async_context(bench(place, peers=connector, on_dial=sought.append))
            made.node = node_id(number)
            roads.benches[made.node.hex()] = made
            benches.append(made)
        try:
            yield Town(benches, roads, sought)
        finally:
            for made in benches:
                await made.gateway.close()
            roads.close()
