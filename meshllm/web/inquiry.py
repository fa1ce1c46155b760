"""A caller's request that has been understood: what is sent upstream for it, and what its answer lacks.

Pure: bytes and values in, bytes and values out.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from meshllm.core.routing import TargetKind
from meshllm.web.upstream import UpstreamPool
from meshllm.wire.apis import Api
from meshllm.wire.repair import StreamRepair, repair_response, stream_repair
from meshllm.wire.request_repair import repair_request

# Of the caller's headers only these go upstream: never its keys, its cookies or its connection's business.
FORWARDED = (b"anthropic-version", b"anthropic-beta")


@dataclass(frozen=True, slots=True)
class Inquiry:
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

    def stream_repair(self, now: int) -> StreamRepair:
        """What repairs the answer's stream; `now` in seconds since the epoch."""
        return stream_repair(self.api, **self._made_up(now))

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
