"""Whether a body will reach the engine: the gateway's own code says so, without a node.

A body that the gateway refuses costs a millisecond, one that reaches the engine tens of them. A run chooses how many of
each it posts.
"""

from __future__ import annotations

from meshllm.core.snapshot import Purpose
from meshllm.web.gateway.api_request import understand
from meshllm.web.gateway.upstream_errors import RequestFailed
from meshllm.web.http.access_control import Verdict
from meshllm.web.http.parser import BodyBudget, Request
from meshllm.wire.api.routes import find_route

_VERDICT, _BUDGET = Verdict(), BodyBudget()


def reaches_engine(path: str, data: bytes, model: str) -> bool:
    """Whether the engine of a node that serves the text model `model` gets that body."""
    route = find_route(path)
    if route is None or route.api.purpose not in (None, Purpose.GENERATE):
        return False
    http = Request("POST", path, {}, data, True, False, _VERDICT, _BUDGET)
    try:
        request = understand(route.api, route.path, http, "")
    except RequestFailed:
        return False
    return request.model == model and request.prepare() is None
