"""A JSON envelope that forces a tool call, or a choice of call and structured answer, and its reader.

The engine's own grammar for `tool_choice: required` allows free text before the call, so a model that does not begin
with one talks until `max_tokens`; and a schema for the answer disables all its tools. A schema for the whole answer is
kept from the first token:

    {"name": TOOL, "arguments": {...}}      or      {"answer": ...}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

ANY_OBJECT: dict[str, Any] = {"type": "object"}
# The head of an envelope is its tool's name and white space.
_MAX_HEAD = 4096
_CALL = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')
_ANSWER = re.compile(r'\s*\{\s*"answer"\s*:\s*(?=\S)')
_STRUCTURE = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)


def envelope_schema(tools: Sequence[tuple[str, Mapping[str, Any]]], answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of a call of one of `tools` (name, schema of its arguments), or of an `answer` of that schema."""
    definitions: dict[str, Any] = {}
    choices = [
        _object({"name": {"const": name}, "arguments": _moved(schema, f"tool{index}", definitions)})
        for index, (name, schema) in enumerate(tools)
    ]
    if answer is not None:
        choices.append(_object({"answer": _moved(answer, "answer", definitions)}))
    root = dict(choices[0]) if len(choices) == 1 else {"anyOf": choices}
    return {**root, "$defs": definitions} if definitions else root


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Mapping[str, Any], key: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema in its place; if it refers to itself, a reference to it among the `definitions`."""
    moved = _with_references(schema, f"#/$defs/{key}")
    if moved == schema:
        return dict(schema) or ANY_OBJECT
    definitions[key] = moved
    return {"$ref": f"#/$defs/{key}"}


def _with_references(part: Any, root: str) -> Any:
    """The schema with all references to its own root changed into references below `root`."""
    if isinstance(part, Mapping):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _with_references(value, root)
            for key, value in part.items()
        }
    return [_with_references(item, root) for item in part] if isinstance(part, list) else part


class Piece(Enum):
    """What a piece of an envelope's text is: the tool's name, or part of its arguments, or of the answer."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ANSWER = "answer"


class EnvelopeReader:
    """Reads an envelope while it arrives. Text that is no envelope is an answer."""

    def __init__(self) -> None:
        self._head: str | None = ""  # None: read
        self._kind = Piece.ANSWER
        self._plain = False
        self._depth = 0
        self._in_string = self._escaped = self._ended = False

    @property
    def called(self) -> bool:
        """Whether it holds a call."""
        return self._head is None and self._kind is Piece.ARGUMENTS

    def feed(self, text: str) -> Iterator[tuple[Piece, str]]:
        """The pieces in more of the text."""
        if self._head is not None:
            self._head += text
            match = _CALL.match(self._head) or _ANSWER.match(self._head)
            if match is not None:
                text, self._head = self._head[match.end() :], None
                if match.re is _CALL:
                    self._kind = Piece.ARGUMENTS
                    yield Piece.NAME, json.loads(match[1], strict=False)
            elif len(self._head) > _MAX_HEAD or not "{".startswith(self._head.strip()[:1]):
                text, self._head, self._plain = self._head, None, True
            else:
                return
        text = text if self._plain else self._value(text)
        if text:
            yield self._kind, text

    def rest(self) -> str:
        """Text that ended before it could be understood: cut by `max_tokens`."""
        rest, self._head = self._head or "", None
        return rest

    def _value(self, text: str) -> str:
        """The part of `text` that belongs to the value: up to the brace that closes the envelope."""
        if self._ended:
            return ""
        skipped = 1 if self._escaped and text else 0
        self._escaped = self._escaped and not text
        for match in _STRUCTURE.finditer(text, skipped):
            sign = match[0]
            if sign.startswith("\\"):
                self._escaped = len(sign) == 1  # the escaped character is in the next piece
            elif sign == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                continue
            elif sign in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    self._ended = True
                    return text[: match.end()] if self._depth == 0 else text[: match.start()].rstrip()
        return text
