"""Reads HTTP/1.1 requests out of bytes, over llhttp (httptools), and bounds what they may cost.

Law: nothing a caller sends is trusted. Head, body, pipelined requests and the memory of all bodies together are bounded
here, and whatever breaks a bound raises `Refused`, after which nothing more is read. No I/O, no time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import httptools

# A head is some hundred bytes from an SDK, some thousand with a browser's cookies.
MAX_HEAD_BYTES = 64 << 10
# Images in a chat are carried in the body, as base64; agents' contexts are far smaller.
MAX_BODY_BYTES = 64 << 20
# All bodies being received or worked on, over all connections.
MAX_BODIES_BYTES = 512 << 20
MAX_PIPELINED = 8
BODY_HEADERS = (b"content-length", b"transfer-encoding")
# Sent twice, these would mean one thing to us and another to whoever reads the request next.
SINGLE_HEADERS = (b"host", b"content-type", b"origin", b"authorization", b"x-api-key")


class Refused(Exception):
    """What was sent will not become a request. `status` 0: hang up without a word."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class BodyBudget:
    """How many bytes the bodies of some connections take together.

    `limit` None: `MAX_BODIES_BYTES`. What is added here is added to `whole` as well, which has a limit of its own.
    """

    held: int = 0
    limit: int | None = None
    whole: BodyBudget | None = None

    def add(self, count: int) -> None:
        """So many bytes more are held; fewer, if it is negative."""
        self.held += count
        if self.whole is not None:
            self.whole.add(count)

    @property
    def spent(self) -> bool:
        """Whether more is held than may be."""
        limit = MAX_BODIES_BYTES if self.limit is None else self.limit
        return self.held > limit or (self.whole is not None and self.whole.spent)


@dataclass(slots=True)
class Request:
    """A request that has arrived whole. Header names are lower case; a repeated header has its values joined by ','."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    http_1_0: bool

    def header(self, name: bytes) -> str:
        """A header's value as text, or the empty string."""
        return self.headers.get(name, b"").decode("latin-1")


class RequestReader:
    """The requests of one connection: `feed` it, take whole ones from `queue`.

    `begun`: the first byte of the next request has come; `in_head`: its head is not complete yet; `expects`: its caller
    waits for a "100 Continue" before it sends the body. Bodies count against the budget until the taker lets them go.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._parser = httptools.HttpRequestParser(self)
        self.queue: deque[Request] = deque()
        self._heads = 0
        self._without_wish = b""
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._version = ""
        self._headers: dict[bytes, bytes] = {}
        # Not a list of pieces: a body in chunks of two bytes would take some twenty times its size.
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._raw_bytes = 0
        self.in_head = True
        self.begun = False
        self.expects = False

    @property
    def path(self) -> str:
        """The path of the request that is being read, as far as it has come."""
        return self._url.partition(b"?")[0].decode("latin-1")

    def feed(self, data: bytes) -> None:
        """Read on. Raises Refused, and is then of no use any more."""
        self._raw_bytes += len(data)
        try:
            if self._raw_bytes > 2 * MAX_BODY_BYTES + MAX_HEAD_BYTES:
                raise Refused(413, "The request is too large.")
            if self.in_head and self._raw_bytes > MAX_HEAD_BYTES:
                data = self._feed_head(data)
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refused):
                raise
            raise error.__context__ from None
        except httptools.HttpParserError as error:
            raise Refused(400, f"This is not HTTP as it should be: {error}.") from error

    def drop_body(self) -> None:
        """Forget the body that is being read."""
        self._budget.add(-self._body_bytes)
        self._body, self._body_bytes = b"", 0

    def drop_all(self) -> None:
        """Forget everything that has been read."""
        self.drop_body()
        self._budget.add(-sum(len(request.body) for request in self.queue))
        self.queue.clear()

    def _feed_head(self, data: bytes) -> bytes:
        """Feed, as long as this is a head, in pieces in each of which one must end; returns what is left."""
        room = max(0, MAX_HEAD_BYTES - (self._raw_bytes - len(data)))
        while self.in_head and data:
            heads = self._heads
            self._feed(data[:room])
            if self.in_head and self._heads == heads:
                raise Refused(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
            data, room = data[room:], MAX_HEAD_BYTES
        return data

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # A wish for another protocol (h2c, WebSocket), which we ignore.
                data = data[int(upgrade.args[0]) if upgrade.args else len(data) :]
                self._parser = httptools.HttpRequestParser(self)
                if again := self._without_wish:
                    self._without_wish = b""
                    self._parser.feed_data(again)

    # -- llhttp

    def on_message_begin(self) -> None:
        self._reset()
        self.begun = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer: nothing we know of is sent in one
        name = name.lower()
        if (known := self._headers.get(name)) is not None:
            if name in SINGLE_HEADERS:
                raise Refused(400, f"The header {name.decode('latin-1')!r} is sent twice.")
            value = known + b"," + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self.in_head = False
        self._heads += 1
        self._version = self._parser.get_http_version()
        if self._version not in ("1.1", "1.0"):
            raise Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise Refused(415, "Compressed request bodies are not understood; send the JSON as it is.")
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.expects = self._version == "1.1"

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._budget.add(len(body))
        if self._body_bytes > MAX_BODY_BYTES:
            raise Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._budget.spent:
            raise Refused(503, "Too much is being received at once; try again in a moment.")
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        has_wish = self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"
        if has_wish and not self._headers.keys().isdisjoint(BODY_HEADERS):
            # The parser has skipped the body, taking it for the other protocol; Java's client sends such requests.
            self._without_wish = self._head_without_wish()
            return
        if len(self.queue) >= MAX_PIPELINED:
            raise Refused(0, "too many pipelined requests")
        self.queue.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                self.path,
                self._headers,
                bytes(self._body),
                self._parser.should_keep_alive(),
                self._version != "1.1",
            )
        )
        self._reset()

    def _head_without_wish(self) -> bytes:
        lines = [b"%b: %b\r\n" % pair for pair in self._headers.items() if pair[0] not in (b"upgrade", b"expect")]
        version = self._version.encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._parser.get_method(), self._url, version, b"".join(lines))
