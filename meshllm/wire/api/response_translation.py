"""Translates the response to a prepared request back into what the caller asked for.

Used only for requests that the engine can keep in another form than the caller's; all other streams pass unparsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import find_error
from meshllm.wire.api.sse import MAX_EVENT, EventBuffer, encode_event, parse_event, split_events

if TYPE_CHECKING:
    from meshllm.wire.api.stream_repair import StreamRepair

Event = dict[str, Any]

WRONG_SHAPE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a translator raises for a response of another shape than the engine's. Uncaught, it would leave the caller
without an answer."""


class Translator(Protocol):
    """Translates the parsed events of one stream, or one whole response. A new one for each attempt."""

    def event(self, event: Event) -> Iterable[Event]:
        """The events to pass on in place of `event`; an error of WRONG_SHAPE if it is not of this API."""

    def whole(self, body: Event) -> Event:
        """The response to pass on in place of a whole, successful one; RequestRefused if it cannot be kept, an error of
        WRONG_SHAPE if it is not of this API."""


MakeTranslator = Callable[[str], Translator]
"""Makes a translator; its argument is unique to the request, for ids."""


class TranslatorChain:
    """Translators that follow one another."""

    def __init__(self, *links: Translator) -> None:
        self._links = links

    def event(self, event: Event) -> Iterable[Event]:
        """The event through all of them."""
        events: list[Event] = [event]
        for link in self._links:
            events = [new for old in events for new in link.event(old)]
        return events

    def whole(self, body: Event) -> Event:
        """The body through all of them."""
        for link in self._links:
            body = link.whole(body)
        return body


def chained(*makers: MakeTranslator | None) -> MakeTranslator | None:
    """The maker of a chain of those that are not None; None if all are."""
    given = [maker for maker in makers if maker is not None]
    if len(given) < 2:
        return given[0] if given else None
    return lambda ident: TranslatorChain(*(maker(ident) for maker in given))


class TranslatedStream:
    """A `StreamRepair` that translates the events of a stream before another one repairs them."""

    def __init__(self, translator: Translator, repair: StreamRepair, limit: int = MAX_EVENT) -> None:
        self._translator = translator
        self._repair = repair
        self._buffer = EventBuffer(limit)

    @property
    def complete(self) -> bool:
        """See `StreamRepair`."""
        return self._repair.complete

    @property
    def started(self) -> bool:
        """See `StreamRepair`."""
        return self._repair.started

    @property
    def failed(self) -> bool:
        """See `StreamRepair`."""
        return self._repair.failed

    @property
    def worker_lost(self) -> bool:
        """See `StreamRepair`."""
        return self._repair.worker_lost

    def feed(self, data: bytes) -> bytes:
        """Translate and repair a piece of the stream."""
        if self.complete:
            return b""
        out = self._block(self._buffer.take(data))
        if self._buffer.overflow:
            out += self.fail("event_too_large", "The model server sent an event above the size limit.")
        return out

    def finish(self) -> bytes:
        """Complete the stream after upstream ended its body properly."""
        if self.complete:
            return b""
        return self._block(self._buffer.rest()) + self._repair.finish()

    def fail(self, code: str, message: str, *, status: int = 502) -> bytes:
        """An error event and the end of the stream."""
        return self._repair.fail(code, message, status=status)

    def _block(self, block: bytes) -> bytes:
        out: list[bytes] = []
        for raw in split_events(block):
            if self.complete:
                break
            try:
                out.append(self._repair.feed(self._translated(raw)))
            except WRONG_SHAPE:
                out.append(self.fail("upstream_invalid", "The model server sent an event that this API does not have."))
        return b"".join(out)

    def _translated(self, raw: bytes) -> bytes:
        event = parse_event(raw)
        value = strict_json.loads_object(event.data) if event.data is not None else None
        if value is None or ("choices" not in value and find_error(value) is not None):
            return raw  # a comment, the end or an error: the repair knows them
        return b"".join(_encoded(new) for new in self._translator.event(value))


def _encoded(event: Mapping[str, Any]) -> bytes:
    kind = event.get("type")
    return encode_event(event, kind) if isinstance(kind, str) else encode_event(event)
