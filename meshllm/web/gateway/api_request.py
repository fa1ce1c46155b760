"""A caller's request that has been understood: what is sent upstream for it, and what its answer lacks.

Pure: bytes and values in, bytes and values out.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from meshllm.core.routing.routes import TargetKind
from meshllm.web.http.client import UpstreamPool
from meshllm.wire.api.images import PICTURE_WORDS, shows_pictures
from meshllm.wire.api.request_repair import repair_request
from meshllm.wire.api.routes import ROUTES, Api
from meshllm.wire.api.stream_repair import StreamRepair, repair_response, stream_repair

# Of the caller's headers only these go upstream: never its keys, its cookies or its connection's business.
FORWARDED = (b"anthropic-version", b"anthropic-beta")
MAX_MODEL_NAME = 512


@dataclass(slots=True)
class WholeResponse:
    """An answer that is not a stream, as it comes in. `retry_after` in seconds, 0 if the target names none."""

    status: int = 0
    is_json: bool = False
    retry_after: int = 0
    size: int = 0
    _parts: list[bytes] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """More of it."""
        self._parts.append(data)
        self.size += len(data)

    @property
    def body(self) -> bytes:
        """All that has come."""
        return b"".join(self._parts)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """`path` is the canonical one; `request` is `body`, parsed; `headers` are the caller's, with lower-case names."""

    api: Api
    path: str
    request: Mapping[str, Any]
    body: bytes
    headers: Mapping[bytes, bytes]

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return str(self.request["model"])

    @property
    def streams(self) -> bool:
        """Whether the caller wants a stream."""
        return self.api.can_stream and self.request.get("stream") is True

    @property
    def about_tokens(self) -> int:
        """How long the prompt is, roughly: what takes a host its time."""
        return len(self.body) // 4

    def shows_pictures(self) -> bool:
        """Whether there are pictures in it: a scan of the body, and a closer look only where that finds some."""
        return any(word in self.body for word in PICTURE_WORDS) and shows_pictures(self.request)

    def wire(self, pool: UpstreamPool, key: str | None) -> bytes:
        """The whole HTTP request for a target; `key` is what it wants as a bearer token."""
        address, body = pool.address, self.body
        if pool.target.kind is TargetKind.ENGINE:
            mended = repair_request(self.api, self.request)
            if mended is not None:
                with contextlib.suppress(orjson.JSONEncodeError):  # nested deeper than can be written
                    body = orjson.dumps(mended)
        lines = [
            f"POST {address.prefix}{self.path} HTTP/1.1\r\nhost: {address.authority}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n".encode("latin-1")
        ]
        lines += [b"%b: %b\r\n" % (name, self.headers[name]) for name in FORWARDED if name in self.headers]
        if key is not None:
            lines.append(f"authorization: Bearer {key}\r\n".encode("latin-1"))
        return b"".join([*lines, b"\r\n", body])

    def stream_repair(self, now: int, *, shared: bool) -> StreamRepair:
        """What repairs the answer's stream; `now` in seconds since the epoch, `shared` as in `routing.Offer`."""
        return stream_repair(self.api, **self._made_up(now), shared=shared)

    def whole_answer(self, body: bytes, *, is_json: bool, now: int) -> bytes | None:
        """The answer as it is passed on; None if it is not what any of these APIs answers. Others' JSON is believed."""
        if is_json and self.api not in (Api.RESPONSES, Api.MESSAGES):
            return body or None
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(answer, dict) or self.api not in (Api.RESPONSES, Api.MESSAGES):
            return body
        try:
            return orjson.dumps(repair_response(self.api, answer, **self._made_up(now)))
        except (orjson.JSONEncodeError, RecursionError):
            return body  # nested deeper, or counting higher, than can be written

    def _made_up(self, now: int) -> dict[str, Any]:
        """What a repair fills in where the target left something out."""
        return {"model": self.model, "ident": secrets.token_hex(12), "created": now, "request": self.request}


def api_of(path: str) -> Api:
    """Whose error shape suits a path, known or not."""
    route = ROUTES.get(path)
    if route is not None:
        return route.api
    return Api.MESSAGES if path.startswith("/v1/messages") else Api.CHAT


def problem_of(body: object) -> tuple[str | None, str] | None:
    """What keeps a body from being a request for a model: the parameter, and a sentence."""
    if not isinstance(body, dict):
        return None, "The body must be a JSON object."
    model = body.get("model")
    if model is None:
        return "model", "Say which model: the parameter 'model' is missing."
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_NAME:
        return "model", f"The parameter 'model' must be a name of 1 to {MAX_MODEL_NAME} characters."
    if not isinstance(body.get("stream"), bool | None):
        return "stream", "The parameter 'stream' must be true or false."
    return None
