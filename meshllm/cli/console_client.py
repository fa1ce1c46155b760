"""Requests to the console of a running node."""

from __future__ import annotations

from meshllm.errors import NotRunning

DEADLINE_SECONDS = 5.0
MAX_ANSWER_BYTES = 16 << 20


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
            advice="Start one with 'mesh-llm --model NAME', or give another node's console port: --node-port PORT.",
        )
    return running.console


def ask(
    port: int, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of the response of the console at `port`. Raises NotRunning."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(
            f"No mesh-llm answers on port {port}: {error or type(error).__name__}.",
            advice="Check that it is running; 'mesh-llm doctor' shows which process uses which port.",
        ) from error
    finally:
        connection.close()


def not_a_console(port: int, status: int) -> NotRunning:
    """The error for a response that no console sends."""
    return NotRunning(
        f"The server on port {port} is not a mesh-llm console (status {status}).",
        advice="Give the console port of a node (3131 by default), not the port of its API.",
    )
