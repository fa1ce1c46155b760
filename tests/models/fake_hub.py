"""A server on 127.0.0.1 with the part of the hub's protocol that downloads use, and with injected faults.

`GET /api/models/ORG/REPO/revision/REVISION` lists a repository. `GET|HEAD /ORG/REPO/resolve/REVISION/PATH` redirects to
the "storage", a second host name of the same server, as the real hub does for large files. Each GET of bytes takes one
of `faults`, each HEAD one of `head_faults`, each list one of `list_faults`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import HubSource, ModelFile, PackageSource

PART_BYTES = 8 << 10
BUFFER_BYTES = 4 << 10


@dataclass
class Request:
    """A request."""

    method: str
    path: str
    host: str
    range: str
    authorization: str


@dataclass
class FakeHub:
    """The hub's content and its moods. Faults: `cut:N` and `reset:N` after N bytes, `stall:N`, `status:CODE[:AFTER]`,
    `wrong[:N]` (bytes, N of them), `more` bytes, `no-range` (answers 200 with everything), `other-range`, `part:N` (N
    bytes, then nothing until `go`).

    `others`: more files of the repository, by path. `listing`: what is sent instead of the list. `lifetime`: for how
    many GETs a signed address is good (0: for ever). `pause`: seconds between the parts of a body. `alarm`: called once
    when so many bytes were sent.
    """

    content: bytes
    revision: str = "c" * 40
    repository: str = "org/repo"
    path: str = "model.gguf"
    etag: str = ""
    size: int | None = None
    faults: list[str] = field(default_factory=list)
    head_faults: list[str] = field(default_factory=list)
    list_faults: list[str] = field(default_factory=list)
    always: str = ""
    others: dict[str, bytes] = field(default_factory=dict)
    listing: bytes | None = None
    lifetime: int = 0
    address: str = ""
    pause: float = 0.0
    alarm: tuple[int, Callable[[], None]] | None = None
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    port: int = 0
    gone: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    signatures: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        """All files of the repository."""
        return {self.path: self.content, **self.others}

    def count(self, sent: int) -> None:
        """Count sent bytes."""
        with self.lock:
            self.sent += sent
            due = self.alarm if self.alarm and self.sent >= self.alarm[0] else None
            if due:
                self.alarm = None
        if due:
            due[1]()

    def manifest_file(self, path: str) -> ModelFile:
        """A file as the hub lists it."""
        content = self.files[path]
        source = HubSource(self.repository, self.revision, path)
        return ModelFile(path.rpartition("/")[2], len(content), hashlib.sha256(content).hexdigest(), (source,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def bodies(self) -> list[Request]:
        """The requests for bytes, in order."""
        return [request for request in self.requests if request.method == "GET" and "/storage/" in request.path]


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the server; nothing of it is left afterwards."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # so that closing waits for all of them
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gone.set()
        hub.go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def make_entry(fake: FakeHub, *sources: HubSource | PackageSource) -> CatalogEntry:
    """A model of one file, with the hub's content, from these sources."""
    file = ModelFile("model.gguf", len(fake.content), fake.sha256, sources)
    return CatalogEntry("Model", "llama", 1, "Q8_0", 512, "MIT", None, (file,))


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def setup(self) -> None:
        # What a client never reads is hardly counted as sent.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _note(self) -> None:
        get = self.headers.get
        self.hub.requests.append(
            Request(self.command, self.path, get("Host", ""), get("Range", ""), get("Authorization", ""))
        )

    def do_HEAD(self) -> None:
        hub = self.hub
        self._note()
        fault = hub.head_faults.pop(0) if hub.head_faults else ""
        if fault == "hang":
            hub.gone.wait()
            return
        if fault.startswith("status:"):
            self._status(fault)
            return
        path = self.path.removeprefix(f"/{hub.repository}/resolve/{hub.revision}/")
        if self.path == "/":
            self.send_response(200)
        elif path in hub.files:
            content = hub.files[path]
            main = path == hub.path
            with hub.lock:
                signature = str(len(hub.signatures))
                hub.signatures[signature] = 0
            self.send_response(302)
            address = f"http://localhost:{hub.port}/storage/{path}?signature={signature}"
            self.send_header("Location", hub.address or address)
            self.send_header("X-Repo-Commit", hub.revision)
            etag = hub.etag if main and hub.etag else hashlib.sha256(content).hexdigest()
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content) if not main or hub.size is None else hub.size))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._note()
        if self.path.startswith("/api/models/"):
            self._list()
        else:
            self._storage()

    def _list(self) -> None:
        hub = self.hub
        fault = hub.list_faults.pop(0) if hub.list_faults else ""
        if fault == "hang":
            hub.gone.wait()
            return
        if fault:
            self._status(fault)
            return
        known = [f"/api/models/{hub.repository}/revision/{name}?blobs=true" for name in ("main", hub.revision)]
        if self.path not in known:
            self._status("status:404")
            return
        siblings: list[dict[str, object]] = [{"rfilename": "README.md", "size": 10, "blobId": "x"}]
        for path, content in hub.files.items():
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": path, "size": len(content), "blobId": "x", "lfs": lfs})
        body = hub.listing or json.dumps({"id": hub.repository, "sha": hub.revision, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _storage(self) -> None:
        hub = self.hub
        with hub.lock:
            fault = hub.faults.pop(0) if hub.faults else hub.always
        name, _, amount = fault.partition(":")
        if name == "status":
            self._status(f"status:{amount}")
            return
        path, _, signature = self.path.removeprefix("/storage/").partition("?signature=")
        with hub.lock:
            hub.signatures[signature] += 1
            used = hub.signatures[signature]
        if hub.lifetime and used > hub.lifetime:
            self._status("status:403")
            return
        content = hub.files[path]
        begin, end = 0, len(content)
        if asked := self.headers["Range"]:
            first, last = asked.removeprefix("bytes=").split("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
        if begin >= len(content):
            self._status("status:416")
            return
        if name == "no-range":
            begin, end = 0, len(content)
        body = content[begin:end]
        if name == "wrong":
            wrong = min(len(body), int(amount or len(body)))
            body = bytes(wrong) + body[wrong:]
        if name == "more":
            body += b"more"
        self._answer(begin, end, len(body), len(content), name)
        limit = int(amount) if amount and name != "wrong" else len(body)
        if not self._send(body[:limit]):
            return
        if name == "stall":
            hub.gone.wait()
            self._send(body[limit:])
        elif name == "part":
            hub.go.wait()
            self._send(body[limit:])
        elif name == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(self, body: bytes) -> bool:
        """Send and count; False if the client disconnected."""
        try:
            for place in range(0, len(body), PART_BYTES):
                part = body[place : place + PART_BYTES]
                self.wfile.write(part)
                self.hub.count(len(part))
                if self.hub.pause and self.hub.gone.wait(self.hub.pause):
                    return False
            self.wfile.flush()
        except OSError:
            return False
        return True

    def _answer(self, begin: int, end: int, length: int, whole: int, fault: str) -> None:
        ranged = bool(self.headers["Range"]) and fault != "no-range"
        self.send_response(206 if ranged else 200)
        if ranged:
            first = begin + 1 if fault == "other-range" else begin
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{whole}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _status(self, fault: str) -> None:
        _, code, *after = fault.split(":")
        self.send_response(int(code))
        if after:
            self.send_header("Retry-After", after[0])
        self.send_header("Content-Length", "0")
        self.end_headers()
