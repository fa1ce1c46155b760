"""Responses that all console handlers share: errors as JSON, and the security headers of every response."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from meshllm.web.console.endpoints import ErrorAnswer, ErrorFacts

SECURITY_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
# Longest part of a request's path that an error repeats.
MAX_PATH: Final = 200


def error_response(status: int, code: str, message: str) -> web.Response:
    """An error in the shape that all endpoints share."""
    body = ErrorAnswer(error=ErrorFacts(code=code, message=message)).model_dump_json()
    return web.Response(text=body, status=status, content_type="application/json", headers=SECURITY_HEADERS)


def http_error_response(request: web.Request, error: web.HTTPException) -> web.Response:
    """The response for an exception that aiohttp raises before or instead of a handler."""
    path = request.path[:MAX_PATH]
    match error.status:
        case 404:
            return error_response(404, "not_found", f"No such page: {path}.")
        case 405:
            allowed = error.headers["allow"]
            response = error_response(405, "method_not_allowed", f"{path} accepts only {allowed}.")
            response.headers["allow"] = allowed
            return response
        case _:
            return error_response(error.status, "invalid_request", f"{error.reason}.")
