"""How attempts and requests fail: error responses of targets, which of them another host may not give, and exceptions.

`NOT_HERE` is a code between gateways: no caller sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway.crashed_requests import REQUEST_CRASHED
from meshllm.wire.api import strict_json
from meshllm.wire.api.engine_faults import INVALID_OUTPUT
from meshllm.wire.api.errors import CONTEXT_CODE, error_body, find_error, status_of, too_long_sizes
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import events_backwards, parse_event, split_events
from meshllm.wire.api.worker_loss import UPSTREAM_LOST, is_worker_loss

# A peer's code for: this node does not serve the model (any more).
NOT_HERE = "not_here"
CONTEXT = CONTEXT_CODE
# The queue of the host is full.
OVERLOADED = "overloaded"
# The host is overloaded or its engine has failed; the request itself is valid.
RETRY_STATUSES = (429, 502, 503, 504)
# The same as error codes, in a stream that has sent only comments so far.
RETRY_CODES = frozenset(
    (
        NOT_HERE,
        OVERLOADED,
        "stopping",
        "model_unavailable",
        "model_not_ready",
        UPSTREAM_LOST,
        "upstream_timeout",
        "upstream_empty",
    )
)
# A stream of `/v1/responses` begins with these events even if only an error follows.
_OPENING_EVENTS = ("response.created", "response.in_progress")


class RequestFailed(Exception):
    """The request ends with an error: of this gateway, or (`error`) of a target. `headers`: lines with their CRLF."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: str = "",
        *,
        param: str | None = None,
        error: UpstreamError | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        self.param = param
        self._error = error

    @classmethod
    def by(cls, refusal: Refusal) -> RequestFailed:
        """The request cannot be kept."""
        return cls(refusal.status, refusal.code, refusal.message, param=refusal.param)

    @classmethod
    def with_error(cls, error: UpstreamError) -> RequestFailed:
        """The error of a target is forwarded."""
        return cls(error.status, error.code, error.message, error.headers, error=error)

    def error(self, api: Api, request_id: str) -> UpstreamError:
        """The error in the shape of the caller's API."""
        if self._error is not None:
            return self._error
        body = error_body(api, self.status, self.code, self.message, param=self.param, request_id=request_id)
        return UpstreamError(self.status, body)


class AttemptFailed(Exception):
    """An attempt failed before its response began: another one may succeed.

    `whole`: the peer or backend failed, not only this model there. `slow`: it was left because it is slow.
    """

    def __init__(self, reason: str, *, whole: bool = False, slow: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.whole = whole
        self.slow = slow


class ConnectionLost(Exception):
    """A target's connection ended before its response was complete. `stale`: as in `ResponseListener`."""

    def __init__(self, reason: str, *, stale: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stale = stale


class TargetRefused(Exception):
    """A target refused the request, and another may not."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """An error response of a host. `body` has the shape of the caller's API; `retry_after` in seconds, 0 if unknown."""

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
        """The error code, or the empty string."""
        code = self.error.get("code")
        return code if isinstance(code, str) else ""

    @property
    def message(self) -> str:
        """The error message, or the empty string."""
        found = self.error.get("message")
        return found if isinstance(found, str) else ""

    @property
    def headers(self) -> str:
        """The headers to forward."""
        return f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""

    def number(self, name: str) -> int:
        """A token count in the error (`n_ctx`, `n_prompt_tokens`), or 0."""
        value = self.error.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else 0

    @property
    def worker_lost(self) -> bool:
        """Whether a split engine has lost a worker, after which it computes nothing more."""
        return self.status == 500 and is_worker_loss(self.error)

    def retryable(self, kind: TargetKind) -> bool:
        """Whether another host may succeed where a target of this `kind` failed."""
        if self.code == CONTEXT and self.status == 400:
            return True
        if kind is TargetKind.ENGINE or self.code in (REQUEST_CRASHED, INVALID_OUTPUT):
            return False  # the caller decides whether another sample is worth its time
        return self.status in RETRY_STATUSES or (kind is TargetKind.PEER and self.code == NOT_HERE)


def retry_after(headers: Mapping[bytes, bytes]) -> int:
    """The seconds in a Retry-After header; 0 if there is none, or it holds a date."""
    value = headers.get(b"retry-after", b"")
    return min(3600, int(value)) if value.isdigit() and len(value) < 10 else 0


def retryable_error_in(api: Api, block: bytes, request_id: str) -> UpstreamError | None:
    """The error in a block of whole events that hold nothing else, if another host may succeed; else None."""
    for raw in split_events(block):
        event = parse_event(raw)
        if event.data is None or event.name == "ping":
            continue
        value = strict_json.loads_object(event.data)
        if value is None:
            return None
        if value.get("type") in _OPENING_EVENTS:
            continue
        found = find_error(value)
        if found is not None and found.get("code") == CONTEXT:
            sizes = too_long_sizes(str(found["message"]))
            extra = sizes | {key: found[key] for key in ("n_prompt_tokens", "n_ctx") if key in found}
            body = error_body(api, 400, CONTEXT, found["message"], extra=extra, request_id=request_id)
            return UpstreamError(400, body)
        if found is None or found.get("code") not in RETRY_CODES:
            return None
        status = 429 if found["code"] == OVERLOADED else max(500, min(599, status_of(found)))
        return UpstreamError(status, error_body(api, status, found["code"], found["message"], request_id=request_id))
    return None


def error_message_in(block: bytes) -> str:
    """The message of the error event that ends a block of whole events, or the empty string. For logs."""
    for raw in islice(events_backwards(block), 3):  # the error, [DONE], and a blank event between them
        value = strict_json.loads_object(parse_event(raw).data or b"")
        found = find_error(value) if value is not None and "choices" not in value else None
        if found is not None:
            return str(found["message"])
    return ""
