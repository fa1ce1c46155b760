"""Fast path for the most frequent event of a `/v1/responses` stream, a text delta of the engine: completed without
parsing.

Invariant: the output equals that of the slow path, byte for byte, or the event is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.wire.api import strict_json
from meshllm.wire.api.response_items import ContentPart, EventEmitter, OutputItem
from meshllm.wire.api.sse import SseEvent

_HEAD = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":%b,"delta":"'
_TAIL = b'","output_index":%d,"content_index":0,"logprobs":[],"sequence_number":'
_END = b'"}\n\n'


@dataclass(frozen=True, slots=True)
class TextDeltas:
    """Completes deltas that continue the text of one part."""

    part: ContentPart
    head: bytes
    tail: bytes

    @classmethod
    def after(cls, item: OutputItem, event: SseEvent) -> TextDeltas | None:
        """The state after `event`, a delta of `item`; None if the event is not in the engine's format."""
        head, part = _HEAD % strict_json.dumps(item.ident), item.parts.get(0)
        if part is None or not event.raw.startswith(head) or not event.raw.endswith(_END):
            return None
        return cls(part, head, _TAIL % item.index)

    def take(self, block: bytes, start: int, out: EventEmitter) -> tuple[bytes, int] | None:
        """The completed event at `start` and its end; None if the next event is another one."""
        first = start + len(self.head)
        last = block.find(b'"', first)
        if last < 0 or not block.startswith(self.head, start) or not block.startswith(_END, last):
            return None
        raw = block[first:last]
        if b"\\" in raw:
            return None
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return None
        if not text.isprintable() or not out.has_room(text):
            return None
        out.remember(self.part.text, text)
        return b"%b%b%b%d}\n\n" % (self.head, raw, self.tail, out.number()), last + len(_END)
