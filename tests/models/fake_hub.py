"""A server on 127.0.0.1 that speaks enough of the Hugging Face hub's protocol, and misbehaves on demand.

`GET|HEAD /ORG/REPO/resolve/REVISION/PATH` redirects to the "storage", a second host name of the same server, as the
real hub does for large files. `faults` are taken one for each GET of the bytes, `head_faults` one for each HEAD.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from meshllm.models.catalog import CatalogEntry
from meshllm.models.manifest import HubSource, ModelFile, PackageSource


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    host: str
    range: str
    authorization: str


@dataclass
class FakeHub:
    """The hub's content and its moods. Faults: `cut:N` and `reset:N` after N bytes, `stall:N`, `status:CODE[:AFTER]`,
    `wrong` bytes, `more` bytes, `no-range` (answers 200 with everything), `other-range`."""

    content: bytes
    revision: str = "c" * 40
    repository: str = "org/repo"
    path: str = "model.gguf"
    etag: str = ""
    size: int | None = None
    faults: list[str] = field(default_factory=list)
    head_faults: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    port: int = 0
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def bodies(self) -> list[Request]:
        """The requests for bytes, in order."""
        return [request for request in self.requests if request.method == "GET"]


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub; afterwards nothing of it is left."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # so that closing waits for all of them
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.gone.set()
        server.shutdown()
        thread.join()
        server.server_close()


def make_entry(fake: FakeHub, *sources: HubSource | PackageSource) -> CatalogEntry:
    """A model of one file, with the hub's content, from these sources."""
    file = ModelFile("model.gguf", len(fake.content), fake.sha256, sources)
    return CatalogEntry("Model", "llama", 1, "Q8_0", 512, "MIT", None, (file,))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

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
        if self.path == "/":
            self.send_response(200)
        elif self.path == f"/{hub.repository}/resolve/{hub.revision}/{hub.path}":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{hub.port}/storage?signature=x")
            self.send_header("X-Repo-Commit", hub.revision)
            self.send_header("X-Linked-Etag", f'"{hub.etag or hub.sha256}"')
            self.send_header("X-Linked-Size", str(len(hub.content) if hub.size is None else hub.size))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        hub = self.hub
        self._note()
        name, _, amount = (hub.faults.pop(0) if hub.faults else "").partition(":")
        if name == "status":
            self._status(f"status:{amount}")
            return
        begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.headers["Range"] else 0
        if begin >= len(hub.content):
            self._status("status:416")
            return
        if name == "no-range":
            begin = 0
        body = hub.content[begin:]
        if name == "wrong":
            body = bytes(len(body))
        if name == "more":
            body += b"more"
        self._answer(begin, len(body), name)
        limit = int(amount) if amount else len(body)
        try:
            self.wfile.write(body[:limit])
            self.wfile.flush()
        except OSError:  # the client went away
            return
        hub.sent += min(limit, len(body))
        if name == "stall":
            hub.gone.wait()
            with contextlib.suppress(OSError):
                self.wfile.write(body[limit:])
        elif name == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _answer(self, begin: int, length: int, fault: str) -> None:
        hub = self.hub
        self.send_response(206 if self.headers["Range"] and fault != "no-range" else 200)
        if self.headers["Range"] and fault != "no-range":
            first = begin + 1 if fault == "other-range" else begin
            self.send_header("Content-Range", f"bytes {first}-{len(hub.content) - 1}/{len(hub.content)}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _status(self, fault: str) -> None:
        _, code, *after = fault.split(":")
        self.send_response(int(code))
        if after:
            self.send_header("Retry-After", after[0])
        self.send_header("Content-Length", "0")
        self.end_headers()
