"""Whether a body will reach the engine: the gateway's own code says so, without a node.

A body that the gateway refuses costs a millisecond, one that reaches the engine tens of them. A run chooses how many of
each it posts.
"""

from __future__ import annotations

import orjson

from meshllm.core.snapshot import Purpose
from meshllm.web.gateway.api_request import parsed, understand
from meshllm.web.gateway.upstream_errors import RequestFailed
from meshllm.web.http.access_control import Verdict
from meshllm.web.http.parser import BodyBudget, Request
from meshllm.wire.api.ollama_request import model_of, translate_request
from meshllm.wire.api.ollama_routes import OllamaRoute, find_ollama_route
from meshllm.wire.api.refusal import RequestRefused
from meshllm.wire.api.routes import find_route

_VERDICT, _BUDGET = Verdict(), BodyBudget()


def reaches_engine(path: str, data: bytes, model: str) -> bool:
    """Whether the engine of a node that serves the text model `model` gets that body."""
    if (ollama := find_ollama_route(path)) is not None:
        return _translated_reaches_engine(ollama, data, model)
    route = find_route(path)
    if route is None or route.api.purpose not in (None, Purpose.GENERATE):
        return False
    http = Request("POST", path, {}, data, True, False, _VERDICT, _BUDGET)
    try:
        request = understand(route.api, route.path, http, "")
    except RequestFailed:
        return False
    return request.model == model and request.prepare() is None


def _translated_reaches_engine(route: OllamaRoute, data: bytes, model: str) -> bool:
    try:
        body = parsed(data)
        call = translate_request(route.api, body, model_of(body))
        return reaches_engine(call.path, orjson.dumps(call.body), model)
    except (RequestFailed, RequestRefused, ValueError, TypeError, RecursionError):
        return False
