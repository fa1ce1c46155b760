"""A parsed API request: the HTTP request to send upstream for it, and the repair of its response. Pure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from meshllm.core.routing.routes import TargetKind
from meshllm.web.http.client import UpstreamPool
from meshllm.wire.api.conversation import ANY_TEMPLATE, TemplateTraits
from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.images import PICTURE_WORDS, shows_pictures
from meshllm.wire.api.json_size import has_too_many_values
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.response_translation import WRONG_SHAPE, MakeTranslator, TranslatedStream, Translator
from meshllm.wire.api.routes import Api, find_route, model_in_path
from meshllm.wire.api.several_choices import assembled, events_in
from meshllm.wire.api.stream_repair import StreamRepair, repair_response, stream_repair

# The only headers of the caller that are sent upstream: never its keys, cookies or hop-by-hop headers.
FORWARDED_HEADERS = (b"anthropic-version", b"anthropic-beta")
MAX_MODEL_NAME = 512
# Names the trust domain of a request to the engine, which reuses cached prompts only within it (patch 14).
SALT_HEADER = "x-prompt-cache-salt"


@dataclass(slots=True)
class WholeResponse:
    """A response that is not a stream, while it arrives. `retry_after` in seconds, 0 if the target names none."""

    status: int = 0
    is_json: bool = False
    retry_after: int = 0
    size: int = 0
    _parts: list[bytes] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Append more of the body."""
        self._parts.append(data)
        self.size += len(data)

    @property
    def body(self) -> bytes:
        """The body received so far."""
        return b"".join(self._parts)


@dataclass(slots=True)  # not frozen: that costs every request some microseconds
class ApiRequest:
    """`path` is the canonical path; `request` is `body`, parsed; `headers` are the caller's, with lower-case names.

    `tasks`: how many tasks the engine makes of it. `salt`: the trust domain of its caller, whose cached prompts it may
    reuse; empty: the owner's. Not changed once made, but for what an engine of this node gets (`prepare`).
    """

    api: Api
    path: str
    request: Mapping[str, Any]
    body: bytes
    headers: Mapping[bytes, bytes]
    request_id: str = ""
    tasks: int = 1
    salt: str = ""
    _prepared: Prepared | None = None
    _prepared_body: bytes = b""

    def prepare(self, traits: TemplateTraits = ANY_TEMPLATE) -> Refusal | None:
        """Prepare the request for an engine of this node; the reason if it cannot keep what the caller asks for."""
        if self._prepared is not None:
            return None
        prepared = prepare(self.api, self.request, traits)
        if isinstance(prepared, Refusal):
            return prepared
        if prepared.body is not None:
            try:
                self._prepared_body = _encode(prepared.body)
            except (ValueError, RecursionError):
                return Refusal(None, "The body is nested too deeply.", "too_large")
        self._prepared = prepared
        return None

    @property
    def model(self) -> str:
        """The requested model."""
        return str(self.request["model"])

    @property
    def streams(self) -> bool:
        """Whether the caller wants a stream."""
        return self.request.get("stream") is True and self.api.can_stream

    @property
    def estimated_tokens(self) -> int:
        """A rough estimate of the prompt's length in tokens."""
        return len(self.body) // 4

    def has_images(self) -> bool:
        """Whether the request holds images: a scan of the body, and a full check only where the scan finds any."""
        return any(word in self.body for word in PICTURE_WORDS) and shows_pictures(self.request)

    def wire(self, pool: UpstreamPool, key: str | None) -> bytes:
        """The whole HTTP request for a target; `key`: the bearer token it requires."""
        address, path, body = pool.address, self.path, self.body
        if pool.target.kind is TargetKind.ENGINE and (prepared := self._prepared) is not None:
            path, body = prepared.path or path, self._prepared_body or body
        lines = [
            f"POST {address.prefix}{path} HTTP/1.1\r\nhost: {address.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {self.request_id}\r\n".encode("latin-1")
        ]
        lines += [b"%b: %b\r\n" % (name, self.headers[name]) for name in FORWARDED_HEADERS if name in self.headers]
        if self.salt and pool.target.kind is TargetKind.ENGINE:
            lines.append(f"{SALT_HEADER}: {self.salt}\r\n".encode("latin-1"))
        if key is not None:
            lines.append(f"authorization: Bearer {key}\r\n".encode("latin-1"))
        return b"".join([*lines, b"\r\n", body])

    def stream_repair(self, now: int, kind: TargetKind | None, *, split: bool) -> StreamRepair:
        """The repair of the response stream of a target of this `kind`.

        `now` in seconds since the epoch, `split` as in `TargetOffer`.
        """
        defaults = self._defaults(now)
        repair = stream_repair(self.api, **defaults, shared=split, request_id=self.request_id)
        if (make := self._translator(kind)) is not None:
            return TranslatedStream(make(defaults["ident"]), repair)
        return repair

    def whole_response(
        self, body: bytes, kind: TargetKind | None, *, is_json: bool, wall: Callable[[], int]
    ) -> bytes | Refusal | None:
        """The response body to forward; None if it is not JSON or too large. Responses of two APIs are repaired.

        `kind`: of the target; `wall`: the time in seconds since the epoch. A Refusal, if only the response shows that
        the request cannot be kept.
        """
        make = self._translator(kind)
        if make is not None and self._prepared is not None and self._prepared.streamed and not is_json:
            return _assembled(make(secrets.token_hex(12)), body)
        if is_json and make is None and self.api not in (Api.RESPONSES, Api.MESSAGES):
            return body or None
        if has_too_many_values(body):
            return None
        try:
            response = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(response, dict) or (make is None and self.api not in (Api.RESPONSES, Api.MESSAGES)):
            return body
        try:
            defaults = self._defaults(wall())
            if make is not None:
                response = _translated(make(defaults["ident"]), response)
                if response is None:
                    return None
            return orjson.dumps(repair_response(self.api, response, **defaults))
        except RequestRefused as refused:
            return refused.refusal
        except (orjson.JSONEncodeError, RecursionError):
            return body  # nested more deeply, or with larger numbers, than orjson can write

    def _translator(self, kind: TargetKind | None) -> MakeTranslator | None:
        return self._prepared.translator if kind is TargetKind.ENGINE and self._prepared is not None else None

    def _defaults(self, now: int) -> dict[str, Any]:
        """The values of fields that the target left out."""
        return {"model": self.model, "ident": secrets.token_hex(12), "created": now, "request": self.request}


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        return json.dumps(body, separators=(",", ":")).encode()


def _assembled(translator: Translator, stream: bytes) -> bytes | Refusal | None:
    """The whole answer that a stream makes, or the error in it; None if it is neither."""
    try:
        events = (new for event in events_in(stream) for new in translator.event(event))
        return orjson.dumps(assembled(events))
    except RequestRefused as refused:
        return refused.refusal
    except WRONG_SHAPE:
        return None


def _translated(translator: Translator, response: dict[str, Any]) -> dict[str, Any] | None:
    """The response translated; None if it is not of its API."""
    try:
        return translator.whole(response)
    except RequestRefused:
        raise
    except WRONG_SHAPE:
        return None


def api_of(path: str) -> Api:
    """The API whose error shape suits a path, known or not."""
    route = find_route(path)
    if route is not None:
        return route.api
    return Api.MESSAGES if path.startswith("/v1/messages") else Api.CHAT


def api_label(path: str) -> str:
    """The API of a path for logs and metrics; "other" if it belongs to none."""
    route = find_route(path)
    if route is not None:
        return route.api.value
    return Api.MODELS.value if model_in_path(path) is not None else "other"


def problem_of(body: object) -> tuple[str | None, str] | None:
    """Why a body is not a request for a model: the parameter at fault, if any, and a message; None if it is one."""
    if not isinstance(body, dict):
        return None, "The body must be a JSON object."
    model = body.get("model")
    if model is None:
        return "model", "The parameter 'model' is missing."
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_NAME:
        return "model", f"The parameter 'model' must be a name of 1 to {MAX_MODEL_NAME} characters."
    if not isinstance(body.get("stream"), bool | None):
        return "stream", "The parameter 'stream' must be true or false."
    return None
