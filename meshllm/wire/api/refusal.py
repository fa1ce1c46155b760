"""The typed refusal of a request that an engine here cannot keep: a caller's fault that names the field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused. `param`: the path of the field at fault (`messages[3].content`), None for the body."""

    param: str | None
    message: str
    code: str = "invalid_parameter"
    status: int = 400


NO_MESSAGE = "'messages' must contain at least one message."
UNSUPPORTED = "unsupported_parameter"
"""The code of a valid field that an engine here cannot keep."""


@dataclass(frozen=True, slots=True)
class ToolSchemaProblem:
    """Why the parameters of a tool are refused. `path`: of the field in the schema (".type"); `text`: a predicate."""

    path: str
    text: str


class RequestRefused(ValueError):
    """Raised inside `wire/api` while a request is prepared; `engine_request.prepare` returns its `refusal`."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def invalid(param: str | None, message: str) -> RequestRefused:
    """To be raised for a field that no server of this API would accept."""
    return RequestRefused(Refusal(param, message))


def unsupported(param: str, message: str) -> RequestRefused:
    """To be raised for a valid field that the engine cannot keep."""
    return RequestRefused(Refusal(param, message, UNSUPPORTED))
