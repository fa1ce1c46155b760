"""What answers on the port of `--ollama-port`: the APIs of Ollama and OpenAI, and nothing else of the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshllm.web.http.access_control import Verdict
from meshllm.web.http.parser import Request, RequestRejected
from meshllm.web.http.server import ActiveRequest, Connection
from meshllm.wire.api.ollama_routes import find_ollama_route
from meshllm.wire.api.routes import Api, find_route, model_in_path

if TYPE_CHECKING:
    from meshllm.web.gateway.gateway import Gateway

# What clients of Ollama compare, to know that there is its API. The header "server" says what serves it.
RUNNING = b"Ollama is running"
_OTHERS = (Api.MESSAGES, Api.COUNT_TOKENS, Api.RERANK)


def is_answered(path: str) -> bool:
    """Whether a path is answered there."""
    if find_ollama_route(path) is not None or model_in_path(path) is not None:
        return True
    route = find_route(path)
    return route is not None and route.api not in _OTHERS


class OllamaPort:
    """The application of that port. Callers are judged as by the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def judge(self, connection: Connection, headers: dict[bytes, bytes]) -> Verdict:
        """The gateway's verdict on the caller."""
        return self._gateway.judge(connection, headers)

    def on_rejected(
        self, connection: Connection, path: str, rejected: RequestRejected, headers: dict[bytes, bytes]
    ) -> None:
        """Send an error for bytes that never became a request."""
        self._gateway.on_rejected(connection, path, rejected, headers)

    def date(self) -> bytes:
        """The Date header's value."""
        return self._gateway.date()

    def on_request(self, connection: Connection, request: Request) -> ActiveRequest | None:
        """Answer `request`, or begin to."""
        return self._gateway.on_request(connection, request, ollama_port=True)
