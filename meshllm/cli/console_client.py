"""HTTP client for the console of a running node, for commands that query a node."""

from __future__ import annotations

from meshllm.errors import NotRunning

TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 16 << 20


def console_port(port: int | None) -> int:
    """`port` if given, else the console port of the node that runs with MESH_LLM_HOME. Raises NotRunning."""
    if port is not None:
        return port
    from meshllm import paths
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    if running is None:
        raise NotRunning(
            f"No mesh-llm node runs with the home {paths.home()}.",
            advice="Start one with 'mesh-llm --model NAME', or name the console port of a node with --console PORT.",
        )
    return running.console


def ask(
    port: int, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Send one request to the console at `port`; returns the HTTP status and the body. Raises NotRunning."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise NotRunning(
            f"Cannot connect to the console on port {port}: {error or type(error).__name__}.",
            advice="Check that the node is running; 'mesh-llm doctor' shows which process uses which port.",
        ) from error
    finally:
        connection.close()


def not_a_console(port: int, status: int) -> NotRunning:
    """The error for an HTTP status that no console answers with."""
    return NotRunning(f"The server on port {port} is not a mesh-llm console (HTTP status {status}).")
