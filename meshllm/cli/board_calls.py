"""Requests of the command line to the blackboard of the running node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from meshllm.cli.console_client import ask, not_a_console
from meshllm.core.board.service import (
    BoardPage,
    BoardPost,
    ClaimAnswer,
    ClaimFacts,
    PostAnswer,
    RoomFacts,
    ScrubPreview,
)
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

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _names(kind: type[DataclassInstance]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


# Acquiring a claim takes two seconds.
ANSWER_SECONDS = 10.0
# The fields of the answers of endpoints, and what is in them.
_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "feed": _names(BoardPage),
    "search": _names(BoardPage),
    "post": _names(PostAnswer),
    "claim": _names(ClaimAnswer),
    "preview": _names(ScrubPreview),
    "claims": ("claims",),
    "rooms": ("rooms",),
    "retract": ("post",),
}
_ROWS: Mapping[str, tuple[str, ...]] = {
    "posts": _names(BoardPost),
    "post": _names(BoardPost),
    "holder": _names(ClaimFacts),
    "claims": _names(ClaimFacts),
    "rooms": _names(RoomFacts),
}


def board_call(
    port: int,
    name: str,
    body: Mapping[str, object] | None = None,
    query: Mapping[str, object] | None = None,
    *,
    within: float = ANSWER_SECONDS,
) -> dict[str, Any]:
    """The answer of the endpoint `name` of the blackboard, posted if there is a `body`; `within` seconds.

    The answer has the fields of the values of `core.board.service`. Raises BoardOff, BoardRefused, BoardRate,
    UsageError, NodeRefused with what the node says; EnvironmentFailure for one who is not the owner, NotRunning (also
    for a node that is stopping).
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
        answer: dict[str, Any] = orjson.loads(text)
        if status != 200:
            raise _error(port, status, str(answer["error"]["code"]), str(answer["error"]["message"]))
        _check(name, answer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise not_a_console(port, status) from error
    return answer


def _check(name: str, answer: Any) -> None:
    """Raise TypeError or KeyError for an answer without the fields that are read here: of another version, or of
    another program."""
    if not isinstance(answer, dict):
        raise TypeError(answer)
    for field in _ANSWERS.get(name, ()):
        value = answer[field]
        if field not in _ROWS or (field == "holder" and value is None):
            continue
        for row in value if isinstance(value, list) else [value]:
            if missing := set(_ROWS[field]) - row.keys():
                raise KeyError(*missing)


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
