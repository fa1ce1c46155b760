"""Requests to the console of a running node."""

from __future__ import annotations

from meshllm.errors import NotRunning

DEADLINE_SECONDS = 5.0
MAX_ANSWER_BYTES = 16 << 20
# `web.console.endpoints.TOKEN_HEADER`, whose module takes long to import.
TOKEN_HEADER = "x-mesh-llm-token"


def console_port(given: int | None) -> int:
    """`given`, or the console port of the node of MESH_LLM_HOME. Raises NotRunning."""
    if given is not None:
        return given
    from meshllm import paths
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    if running is None:
        raise NotRunning(
            f"No mesh-llm is running with the home {paths.home()}.",
            advice="Start one with 'mesh-llm', or give another node's console port: --node-port PORT.",
        )
    return running.console


def ask(
    port: int,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    within: float = DEADLINE_SECONDS,
) -> tuple[int, bytes]:
    """Status and body of the response of the console at `port`, asked as the owner where the node is that of
    MESH_LLM_HOME; `within` seconds. Raises NotRunning."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    try:
        connection.request(method, path, body, token_headers(port) | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(
            f"No mesh-llm answers on port {port}: {error or type(error).__name__}.",
            advice="Check that it is running; 'mesh-llm doctor' shows which process uses which port.",
        ) from error
    finally:
        connection.close()


def token_headers(port: int) -> dict[str, str]:
    """The header that makes this command the owner for the console at `port`; empty if that is not the node of
    MESH_LLM_HOME, whose token this user can read."""
    from meshllm import paths
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    return {TOKEN_HEADER: running.token} if running is not None and running.console == port and running.token else {}


def not_a_console(port: int, status: int) -> NotRunning:
    """The error for a response that no console sends."""
    return NotRunning(
        f"The server on port {port} is not a mesh-llm console (status {status}).",
        advice="Give the console port of a node (3131 by default), not the port of its API.",
    )
