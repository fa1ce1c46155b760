"""Edits JSON with comments and trailing commas (JSONC) as text: what is not added or removed keeps its bytes. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from meshllm.agents.text_edit import APPEND, CannotEdit, Path, nested, same

# Deeper than any settings file; the scanner is recursive.
MAX_DEPTH = 100
_SPACE = re.compile(r"(?:[ \t\r\n\ufeff]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_SCALAR = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null')


@dataclass(slots=True)
class _Node:
    """A value between `start` and `end` of the text. `children`: of an object (with key) or a list (key None);
    `trailing_comma`: the end of the comma behind the last child, 0 without one."""

    value: Any
    start: int
    end: int = 0
    children: list[_Child] = field(default_factory=list)
    trailing_comma: int = 0


@dataclass(slots=True)
class _Child:
    """A member or an item; `start` is where its key begins. `comma`: the end of the comma behind it, 0 without one."""

    key: str | None
    start: int
    node: _Node
    comma: int = 0


def parse(text: str) -> Any:
    """The value of the text. Raises CannotEdit with line and column."""
    return _scan(text).value


def add(text: str, path: Path, value: Any) -> str:
    """`text` with `value` at `path`, and with the objects on the way where they are missing.

    Raises CannotEdit if there is a value at `path`, or if something on the way is no object.
    """
    node = _scan(text)
    for depth, key in enumerate(path):
        if key == APPEND:
            if not isinstance(node.value, list):
                raise CannotEdit(f"{_shown(path[:depth])} is not a list")
            return _insert(text, node, None, value)
        if not isinstance(node.value, dict):
            raise CannotEdit(f"{_shown(path[:depth])} is not an object")
        child = next((child for child in reversed(node.children) if child.key == key), None)
        if child is None:
            return _insert(text, node, key, nested(path[depth + 1 :], value))
        node = child.node
    raise CannotEdit(f"{_shown(path)} has a value of its own")


def remove(text: str, path: Path, value: Any, created: int) -> str:
    """`text` without the `value` at `path`, and without the objects on the way, from number `created` on, that are
    empty then. Raises CannotEdit if `value` is not there any more."""
    chain = [_scan(text)]
    steps: list[_Child] = []
    for key in path:
        children = chain[-1].children
        if key == APPEND:
            found = next((child for child in reversed(children) if same(child.node.value, value)), None)
        else:
            found = next((child for child in reversed(children) if child.key == key), None)
        if found is None:
            raise CannotEdit(f"{_shown(path)} is not there any more")
        steps.append(found)
        chain.append(found.node)
    if not same(chain[-1].value, value):
        raise CannotEdit(f"{_shown(path)} was changed")
    level = len(steps) - 1
    while level > created and len(chain[level].children) == 1:
        level -= 1
    return _cut(text, chain[level], steps[level])


def dump(value: Any, unit: str = "  ") -> str:
    """`value` as JSON over several lines."""
    return json.dumps(value, indent=unit, ensure_ascii=False)


def _scan(text: str) -> _Node:
    node, end = _value(text, _space(text, 0), 0)
    end = _space(text, end)
    if end != len(text):
        raise _error(text, end, "text behind the end")
    return node


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _error(text: str, at: int, what: str) -> CannotEdit:
    line = text.count("\n", 0, at) + 1
    return CannotEdit(f"line {line}, column {at - text.rfind(chr(10), 0, at)}: {what}")


def _value(text: str, at: int, depth: int) -> tuple[_Node, int]:
    if depth > MAX_DEPTH:
        raise _error(text, at, "nested too deeply")
    mark = text[at : at + 1]
    if mark in ("{", "["):
        node = _container(text, at, depth)
        return node, node.end
    match = _SCALAR.match(text, at)
    if match is None:
        raise _error(text, at, "a value is missing" if not mark else f"unexpected {mark!r}")
    try:
        value = json.loads(match.group())
    except ValueError:
        raise _error(text, at, "a string is damaged") from None
    return _Node(value, at, match.end()), match.end()


def _container(text: str, at: int, depth: int) -> _Node:
    is_object = text[at] == "{"
    node, close = _Node({} if is_object else [], at), "}" if is_object else "]"
    place, separated = _space(text, at + 1), True
    while text[place : place + 1] != close:
        if not separated:
            raise _error(text, place, "a comma is missing" if place < len(text) else "the end is missing")
        start, key = place, None
        if is_object:
            name, place = _value(text, place, depth + 1)
            if not isinstance(name.value, str):
                raise _error(text, start, "a name in quotes is missing")
            key, place = name.value, _space(text, place)
            if text[place : place + 1] != ":":
                raise _error(text, place, "a colon is missing")
            place = _space(text, place + 1)
        item, place = _value(text, place, depth + 1)
        child = _Child(key, start, item)
        node.children.append(child)
        if is_object:
            node.value[key] = item.value
        else:
            node.value.append(item.value)
        place = _space(text, place)
        separated = text[place : place + 1] == ","
        if separated:
            child.comma = place + 1
            place = _space(text, place + 1)
    node.end = place + 1
    node.trailing_comma = node.children[-1].comma if node.children else 0
    return node


def _insert(text: str, node: _Node, key: str | None, value: Any) -> str:
    """`text` with a further child at the end of `node`."""
    newline = "\r\n" if "\r\n" in text else "\n"
    last = node.children[-1] if node.children else None
    closing = node.end - 1
    name = "" if key is None else f"{json.dumps(key, ensure_ascii=False)}: "
    if last is not None and "\n" not in text[node.start : node.end]:
        body = f" {name}{json.dumps(value, ensure_ascii=False)}"
        at = node.trailing_comma
        return f"{text[:at]}{body},{text[at:]}" if at else f"{text[: last.node.end]},{body}{text[last.node.end :]}"
    unit = _unit(text)
    outer = _indent(text, node.start)
    inner = outer + unit
    if last is not None and not text[text.rfind("\n", 0, last.start) + 1 : last.start].strip():
        inner = _indent(text, last.start)
    body = name + dump(value, unit).replace("\n", newline + inner)
    end = node.start + 1 + len(text[node.start + 1 : closing].rstrip())
    close = "" if "\n" in text[end:closing] else newline + outer
    # Where the last child has a comma, ours has one, too: each is taken out with its own.
    comma = "," if node.trailing_comma else ""
    added = f"{newline}{inner}{body}{comma}{close}"
    if last is None or node.trailing_comma:
        return text[:end] + added + text[end:]
    return f"{text[: last.node.end]},{text[last.node.end : end]}{added}{text[end:]}"


def _cut(text: str, node: _Node, child: _Child) -> str:
    """`text` without a child of `node`, its comma and the space before it."""
    start = len(text[: child.start].rstrip())
    if len(node.children) == 1 and not text[node.start + 1 : child.start].strip():
        rest = text[max(child.node.end, child.comma) : node.end - 1]
        if not rest.strip():
            return text[: node.start + 1] + text[node.end - 1 :]
    if child.comma:
        return text[:start] + text[child.comma :]
    index = node.children.index(child)
    if index == 0:
        return text[:start] + text[child.node.end :]
    comma = node.children[index - 1].comma
    return text[: comma - 1] + text[comma:start] + text[child.node.end :]


def _indent(text: str, at: int) -> str:
    """The white space that the line of `at` begins with."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """One step of the text's indentation."""
    match = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return match.group(1) if match else "  "


def _shown(path: Path) -> str:
    return ".".join(key for key in path if key != APPEND) or "the file"
