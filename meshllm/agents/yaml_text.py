"""Edits YAML as text: what is not added or removed keeps its bytes, comments included. Block style only. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from meshllm.agents.text_edit import APPEND, CannotEdit, Path, nested, same


def parse(text: str) -> Any:
    """The value of the text; an empty text is an empty mapping. Raises CannotEdit with line and column."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CannotEdit(_reason(error)) from None
    return {} if value is None else value


def add(text: str, path: Path, value: Any) -> str:
    """`text` with `value` at `path`, and with the mappings on the way where they are missing.

    Raises CannotEdit if there is a value at `path`, or if something on the way has no block style.
    """
    node = _compose(text)
    if node is None:
        return _with_newline(text) + _block(nested(path, value), 0)
    for depth, key in enumerate(path):
        if key == APPEND:
            if not isinstance(node, yaml.SequenceNode) or node.flow_style or not node.value:
                raise CannotEdit(f"{_shown(path[:depth])} is not a list of lines that begin with '-'")
            return _insert(text, _end(node), _block([value], node.start_mark.column))
        if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
            raise CannotEdit(f"{_shown(path[:depth])} is not a mapping of lines")
        found = next((child for name, child in node.value if name.value == key), None)
        if found is None:
            added = {key: nested(path[depth + 1 :], value)}
            return _insert(text, _end(node), _block(added, node.start_mark.column))
        node = found
    raise CannotEdit(f"{_shown(path)} has a value of its own")


def remove(text: str, path: Path, value: Any, created: int) -> str:
    """`text` without the lines of the `value` at `path`, and of the mappings on the way, from number `created` on, that
    are empty then. Raises CannotEdit if `value` is not there any more."""
    node, data = _compose(text), parse(text)
    steps: list[tuple[int, Any, int]] = []  # where it begins, its node, how many siblings
    for key in path:
        if isinstance(node, yaml.SequenceNode) and key == APPEND and isinstance(data, list):
            index = next((at for at in reversed(range(len(data))) if same(data[at], value)), None)
            if index is None:
                break
            steps.append((_dash(text, node.value[index].start_mark.index), node.value[index], len(node.value)))
            node, data = node.value[index], data[index]
        elif isinstance(node, yaml.MappingNode) and isinstance(data, dict) and key in data:
            name, child = next(pair for pair in reversed(node.value) if pair[0].value == key)
            steps.append((name.start_mark.index, child, len(node.value)))
            node, data = child, data[key]
        else:
            break
    if len(steps) != len(path) or not same(data, value):
        raise CannotEdit(f"{_shown(path)} was changed")
    level = len(steps) - 1
    while level > created and steps[level][2] == 1:
        level -= 1
    start, child, _ = steps[level]
    line = text.rfind("\n", 0, start) + 1
    if text[line:start].strip():
        raise CannotEdit(f"{_shown(path)} shares its line")
    return text[:line] + text[_line_end(text, _end(child)) :]


def _compose(text: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise CannotEdit(_reason(error)) from None
    return node


def _end(node: yaml.Node) -> int:
    """Where the text of a node ends. PyYAML ends a block only at the next token, behind comments and blank lines."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _line_end(text: str, at: int) -> int:
    """The beginning of the line behind the one that `at` ends; a literal block ends at the beginning of a line."""
    if at and text[at - 1] == "\n":
        return at
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _insert(text: str, at: int, lines: str) -> str:
    end = _line_end(text, at)
    if "\r\n" in text:
        lines = lines.replace("\n", "\r\n")
    return _with_newline(text[:end]) + lines + text[end:]


def _with_newline(text: str) -> str:
    return text if not text or text.endswith("\n") else text + ("\r\n" if "\r\n" in text else "\n")


def _block(value: Any, indent: int) -> str:
    lines = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1 << 20)
    return "".join(" " * indent + line for line in lines.splitlines(keepends=True))


def _dash(text: str, at: int) -> int:
    """Where the '-' of an item stands."""
    return text.rfind("-", 0, at)


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{place}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def _shown(path: Path) -> str:
    return ".".join(key for key in path if key != APPEND) or "the file"
