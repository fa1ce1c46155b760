"""HTTP/1.1 request parser over llhttp (httptools), with bounds on what a request may cost.

Invariants: head, body, number of pipelined requests and the memory of all bodies together are bounded; a request beyond
a bound raises `RequestRejected`, after which the parser reads nothing more. No I/O, no time.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httptools

from meshllm.web.http.access_control import Verdict

# An SDK sends some hundred bytes, a browser with cookies some thousand.
MAX_HEAD_BYTES = 64 << 10
# Images in a chat are base64 in the body; agents' contexts are far smaller.
MAX_BODY_BYTES = 64 << 20
# All bodies being received or processed, over all connections.
MAX_BODIES_BYTES = 512 << 20
MAX_PIPELINED = 8
# What a chunked body may come with, in bytes: MAX_HEAD_BYTES, and so many for each byte of the body. Of this, chunk
# extensions and trailers may take MAX_HEAD_BYTES without a break. A chunk of one byte has 5 bytes of framing.
FRAMING_PER_BYTE = 16
BODY_HEADERS = (b"content-length", b"transfer-encoding")
# A request that repeats one of these is ambiguous (request smuggling).
SINGLE_HEADERS = (b"host", b"content-type", b"origin", b"authorization", b"x-api-key")
# Expanded at once: the bounds are checked after each piece.
GUNZIP_BYTES = 1 << 20


class RequestRejected(Exception):
    """The bytes received will not become a request. `status` 0: close without a response.

    `code` is for programs; `refused`: the caller may not call.
    """

    def __init__(self, status: int, message: str, code: str = "bad_request", *, refused: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.refused = refused


class Gunzip:
    """Expands a gzip body while it arrives."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._begun = False

    @property
    def cut(self) -> bool:
        """Whether data has come, but not its end."""
        return self._begun and not self._inner.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """More of the body, in pieces of at most `GUNZIP_BYTES`. Raises RequestRejected for data that is not gzip."""
        self._begun = True
        while data:
            if self._inner.eof:
                raise RequestRejected(400, "The body goes on after the end of its gzip data.")
            try:
                piece = self._inner.decompress(data, GUNZIP_BYTES)
            except zlib.error:
                raise RequestRejected(400, "The body is not gzip, as its content-encoding says.") from None
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            if piece:
                yield piece


@dataclass(slots=True)
class BodyBudget:
    """The memory that the bodies of a set of connections take together, in bytes.

    `limit` None: `MAX_BODIES_BYTES`. Every addition also counts against `parent`, which has a limit of its own.
    """

    held: int = 0
    limit: int | None = None
    parent: BodyBudget | None = None

    def add(self, count: int) -> bool:
        """Account for `count` more bytes (negative: freed ones). Whether the limits are kept, a parent's, too."""
        self.held += count
        kept = self.parent is None or self.parent.add(count)
        return kept and self.held <= (MAX_BODIES_BYTES if self.limit is None else self.limit)


@dataclass(slots=True)
class Request:
    """A complete request. Header names are lower case; the values of a repeated header are joined by ','.

    `verdict` is that on its caller, `budget` the one that `body` counts against.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    http_1_0: bool
    verdict: Verdict
    budget: BodyBudget

    def header(self, name: bytes) -> str:
        """A header's value as text, or the empty string."""
        return self.headers.get(name, b"").decode("latin-1")


# Judges the caller when a head is complete: the verdict, and the budget of the body. Raises RequestRejected.
Judge = Callable[["RequestReader"], tuple[Verdict, BodyBudget]]


class RequestReader:
    """Parses the requests of one connection: `feed` it bytes, take complete requests from `queue`.

    `judge` decides before any body is read.

    `begun`: the first byte of the next request has come; `in_head`: its head is incomplete; `expects`: the caller waits
    for "100 Continue" before it sends the body. Bodies count against the budget until the consumer releases them.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._verdict = Verdict()
        self._budget = BodyBudget()
        self._parser = httptools.HttpRequestParser(self)
        self.queue: deque[Request] = deque()
        self._heads = 0
        self._without_upgrade = b""
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._version = ""
        self._gunzip: Gunzip | None = None
        self._headers: dict[bytes, bytes] = {}
        # Not a list of pieces: a body in chunks of two bytes would take some twenty times its size.
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._raw_bytes = 0
        # Since the last byte of body: chunk extensions and trailers. llhttp keeps a field until it is complete.
        self._framing_bytes = self._trailer_bytes = 0
        self.in_head = True
        self.begun = False
        self.expects = False

    @property
    def path(self) -> str:
        """The path of the request being read, as far as it has come."""
        url = self._url
        if url[:1] != b"/" and _is_absolute(url):  # absolute-form, which servers must accept (RFC 9112, 3.2.2)
            _, slash, rest = url[7:].partition(b"/")
            url = slash + rest if slash else b"/"
        return url.partition(b"?")[0].decode("latin-1")

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the request being read, as far as they have come."""
        return self._headers

    def feed(self, data: bytes) -> None:
        """Parse more bytes. Raises RequestRejected; do not feed the reader after that."""
        self._raw_bytes += len(data)
        try:
            if self._raw_bytes > 2 * MAX_BODY_BYTES + MAX_HEAD_BYTES:
                raise RequestRejected(413, "The request is too large.")
            if self.in_head and self._raw_bytes > MAX_HEAD_BYTES:
                data = self._feed_head(data)
            if self.in_head:
                self._feed(data)
            else:
                self._feed_body(data)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestRejected):
                raise
            raise error.__context__ from None
        except httptools.HttpParserError as error:
            raise RequestRejected(400, f"Malformed HTTP request: {error}.") from error

    def drop_body(self) -> None:
        """Discard the body being read."""
        self._budget.add(-self._body_bytes)
        self._body, self._body_bytes = b"", 0

    def drop_all(self) -> None:
        """Discard all that has been read."""
        self.drop_body()
        for request in self.queue:
            request.budget.add(-len(request.body))
        self.queue.clear()

    @property
    def has_body(self) -> bool:
        """Whether the request whose head has just come has a body."""
        return self._headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self._headers

    def _feed_head(self, data: bytes) -> bytes:
        """Feed heads in pieces of at most MAX_HEAD_BYTES, each of which must end a head; returns the rest."""
        limit = max(0, MAX_HEAD_BYTES - (self._raw_bytes - len(data)))
        while self.in_head and data:
            heads = self._heads
            self._feed(data[:limit])
            if self.in_head and self._heads == heads:
                raise RequestRejected(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
            data, limit = data[limit:], MAX_HEAD_BYTES
        return data

    def _feed_body(self, data: bytes) -> None:
        """Feed bytes of a body, of which those around it are bounded: chunk extensions and trailers."""
        self._framing_bytes += len(data)  # `on_body` and a new request set it to 0
        self._feed(data)
        if self.in_head:
            return
        around = self._raw_bytes - self._body_bytes
        if self._framing_bytes > MAX_HEAD_BYTES or around > 2 * MAX_HEAD_BYTES + FRAMING_PER_BYTE * self._body_bytes:
            raise _too_much_framing()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # A request to upgrade to another protocol (h2c, WebSocket): ignored.
                data = data[int(upgrade.args[0]) if upgrade.args else len(data) :]
                self._parser = httptools.HttpRequestParser(self)
                if again := self._without_upgrade:
                    self._without_upgrade = b""
                    self._parser.feed_data(again)

    # -- llhttp

    def on_message_begin(self) -> None:
        self._raw_bytes = 0  # all else is as `_reset` left it
        self.begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            # A trailer: no known client sends anything useful in one.
            self._trailer_bytes += len(name) + len(value) + len(b": \r\n")
            if self._trailer_bytes > MAX_HEAD_BYTES:
                raise _too_much_framing()
            return
        name, headers = name.lower(), self._headers
        if name in headers:
            if name in SINGLE_HEADERS:
                raise RequestRejected(400, f"The header {name.decode('latin-1')!r} is sent twice.")
            value = headers[name] + b"," + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._heads += 1
        headers = self._headers
        version = self._version = self._parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise RequestRejected(505, "HTTP version not supported: use HTTP/1.1 or HTTP/1.0.")
        if self._url[:1] != b"/" and _is_absolute(self._url):
            # Its authority stands in place of the Host header, for the judge as well.
            headers[b"host"] = re.split(rb"[/?#]", self._url[7:], maxsplit=1)[0]
        self._verdict, self._budget = self._judge(self)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise RequestRejected(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if b"content-encoding" in headers:
            self._decode(headers[b"content-encoding"].lower())
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self.expects = version == "1.1"

    def _decode(self, coding: bytes) -> None:
        """The body has the content-encoding `coding`."""
        if coding in (b"gzip", b"x-gzip"):
            self._gunzip = Gunzip()
        elif coding not in (b"identity", b""):
            raise RequestRejected(
                415,
                f"Bodies with the content-encoding {coding[:40].decode('latin-1')!r} are not supported: "
                "use gzip or none.",
            )

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        if self._gunzip is None:
            self._take(body)
            return
        for piece in self._gunzip.pieces(body):
            self._take(piece)

    def _take(self, body: bytes) -> None:
        """Add a part of the body, as the application gets it."""
        self._body_bytes += len(body)
        kept = self._budget.add(len(body))
        if self._body_bytes > MAX_BODY_BYTES:
            raise RequestRejected(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if not kept:
            raise RequestRejected(503, "The server is receiving too many request bodies at once. Retry in a moment.")
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        wants_upgrade = self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"
        if wants_upgrade and not self._headers.keys().isdisjoint(BODY_HEADERS):
            # llhttp skipped the body, as if it were the other protocol's; Java's HTTP client sends such requests.
            self._without_upgrade = self._head_without_upgrade()
            self._reset()
            return
        if self._gunzip is not None and self._gunzip.cut:
            raise RequestRejected(400, "The body is not complete: its gzip data ends too early.")
        if len(self.queue) >= MAX_PIPELINED:
            raise RequestRejected(0, "too many pipelined requests")
        self.queue.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                self.path,
                self._headers,
                bytes(self._body),
                self._parser.should_keep_alive(),
                self._version != "1.1",
                self._verdict,
                self._budget,
            )
        )
        self._reset()

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%b: %b\r\n" % pair for pair in self._headers.items() if pair[0] not in (b"upgrade", b"expect")]
        version = self._version.encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._parser.get_method(), self._url, version, b"".join(lines))


def _is_absolute(url: bytes) -> bool:
    return url[:7].lower() == b"http://"


def _too_much_framing() -> RequestRejected:
    return RequestRejected(413, f"The chunk extensions or trailers are longer than {MAX_HEAD_BYTES} bytes.")
