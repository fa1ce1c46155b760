"""Requests with the fields that each API requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshllm.wire.api import engine_request
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api


def prepare(api: Api, body: Mapping[str, Any]) -> Prepared | Refusal:
    """The same as `engine_request.prepare`, with a length of the answer where the API requires one."""
    required = {"max_tokens": 64} if api is Api.MESSAGES else {}
    return engine_request.prepare(api, {**required, **body})
