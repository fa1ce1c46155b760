"""Requests of the command line to the blackboard of the running node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from meshllm.cli.console_client import ask, not_a_console
from meshllm.errors import (
    BoardOff,
    BoardRate,
    BoardRefused,
    EnvironmentFailure,
    MeshError,
    NodeRefused,
    NotRunning,
    UsageError,
)

# Acquiring a claim takes two seconds.
ANSWER_SECONDS = 10.0


def board_call(
    port: int,
    name: str,
    body: Mapping[str, object] | None = None,
    query: Mapping[str, object] | None = None,
    *,
    within: float = ANSWER_SECONDS,
) -> dict[str, Any]:
    """The answer of the endpoint `name` of the blackboard, posted if there is a `body`; `within` seconds.

    Raises BoardOff, BoardRefused, BoardRate, UsageError, NodeRefused with what the node says; EnvironmentFailure for
    one who is not the owner, NotRunning (also for a node that is stopping).
    """
    import orjson

    path = f"/api/blackboard/{name}"
    if query:
        path += f"?{urlencode({key: _flat(value) for key, value in query.items()})}"
    if body is None:
        status, text = ask(port, "GET", path, within=within)
    else:
        headers = {"content-type": "application/json"}
        status, text = ask(port, "POST", path, body=orjson.dumps(body), headers=headers, within=within)
    try:
        answer = orjson.loads(text)
        if status != 200:
            raise _error(port, status, str(answer["error"]["code"]), str(answer["error"]["message"]))
        if not isinstance(answer, dict):
            raise TypeError(answer)
    except (KeyError, TypeError, ValueError) as error:
        raise not_a_console(port, status) from error
    return answer


def _flat(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _error(port: int, status: int, code: str, message: str) -> MeshError:
    """The error that the console answered."""
    if status == 403:
        return EnvironmentFailure(
            f"The node with console port {port} does this for its owner only.",
            advice="Run this as the user who runs the node, with the same MESH_LLM_HOME.",
        )
    known: dict[str, type[MeshError]] = {kind.code: kind for kind in (BoardOff, BoardRefused, BoardRate)}
    if code in known:
        return known[code](message)
    if code == "not_found":
        return BoardOff("The running node is of a version without a blackboard.", advice="Update it and restart it.")
    if code == "stopping":
        return NotRunning(f"The node with console port {port} is stopping.")
    return UsageError(message) if code == "invalid_request" else NodeRefused(message)
