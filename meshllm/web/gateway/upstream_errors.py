"""Answers that are errors, and which of them another host may do better.

Law: what is passed on is in the caller's own API shape. `NOT_HERE` is a word between gateways: a caller never sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshllm.core.routing.routes import TargetKind
from meshllm.wire.api import strict_json
from meshllm.wire.api.errors import error_body, find_error, status_of
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import parse_event, split_events
from meshllm.wire.api.worker_loss import UPSTREAM_LOST, is_worker_loss

# A peer's word for: the model that you ask for is not served here (any more), ask somebody else.
NOT_HERE = "not_here"
CONTEXT = "context_length_exceeded"
# What a host says that has no room, or whose engine has failed: nothing that is wrong with the request.
ELSEWHERE_STATUSES = (429, 502, 503, 504)
# The same, by its code, in a stream that has begun with comments only.
ELSEWHERE_CODES = frozenset(
    (
        NOT_HERE,
        "overloaded",
        "stopping",
        "model_unavailable",
        "model_not_ready",
        UPSTREAM_LOST,
        "upstream_timeout",
        "upstream_empty",
    )
)
# What a stream of `/v1/responses` begins with even if all that follows is an error.
_OPENINGS = ("response.created", "response.in_progress")


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """A host's answer that is an error: the body to pass on if nobody does better, and what programs know it by."""

    status: int
    body: Mapping[str, Any]
    retry_after: int = 0

    @property
    def error(self) -> Mapping[str, Any]:
        """The error object."""
        found = self.body.get("error")
        return found if isinstance(found, Mapping) else {}

    @property
    def code(self) -> str:
        """The word for programs, or the empty string."""
        code = self.error.get("code")
        return code if isinstance(code, str) else ""

    @property
    def headers(self) -> str:
        """The headers to pass on."""
        return f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""

    def number(self, name: str) -> int:
        """A count of tokens that the error speaks of, or 0."""
        value = self.error.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else 0

    @property
    def worker_lost(self) -> bool:
        """Whether an engine with workers on other nodes has lost one: then this is no answer, but its end."""
        return self.status == 500 and is_worker_loss(self.error)

    def elsewhere(self, kind: TargetKind) -> bool:
        """Whether another host may answer what a target of this `kind` did not."""
        if self.code == CONTEXT and self.status == 400:
            return True
        if kind is TargetKind.ENGINE:
            return False
        return self.status in ELSEWHERE_STATUSES or (kind is TargetKind.PEER and self.code == NOT_HERE)


def retry_after(headers: Mapping[bytes, bytes]) -> int:
    """The seconds that a target asks for, 0 if it names none (or a date)."""
    value = headers.get(b"retry-after", b"")
    return min(3600, int(value)) if value.isdigit() and len(value) < 10 else 0


def refusal_in_stream(api: Api, block: bytes) -> UpstreamError | None:
    """The error in a block of whole events that hold nothing else, if another host may do better; else None."""
    for raw in split_events(block):
        event = parse_event(raw)
        if event.data is None or event.name == "ping":
            continue
        value = strict_json.loads_object(event.data)
        if value is None:
            return None
        if value.get("type") in _OPENINGS:
            continue
        found = find_error(value)
        if found is None or found.get("code") not in ELSEWHERE_CODES:
            return None
        status = 429 if found["code"] == "overloaded" else max(500, min(599, status_of(found)))
        return UpstreamError(status, error_body(api, status, found["code"], found["message"]))
    return None
