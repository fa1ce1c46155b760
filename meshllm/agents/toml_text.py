"""Adds tables to TOML as text and takes them out: all else keeps its bytes, comments included. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from meshllm.agents.text_edit import CannotEdit, Path, same

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_HEADER = re.compile(r"^[ \t]*\[.*$", re.MULTILINE)
_TRAILING = re.compile(r"(?:^[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z))*\Z", re.MULTILINE)


def parse(text: str) -> Any:
    """The value of the text. Raises CannotEdit with line and column."""
    try:
        # The end of line of Windows is one of TOML, too; a mark of the byte order is not.
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CannotEdit(str(error) or "nested too deeply") from None


def add(text: str, path: Path, value: Any) -> str:
    """`text` with the table `value` at `path`, behind all else.

    Raises CannotEdit if there is a value at `path`, or if the text has no place for a table there.
    """
    if not isinstance(value, dict):
        raise CannotEdit(f"{_shown(path)} is no table")
    known = parse(text)
    if _at(known, path) is not None:
        raise CannotEdit(f"{_shown(path)} has a value of its own")
    on_the_way = [path[:depth] for depth in range(1, len(path)) if _at(known, path[:depth]) is not None]
    for way in on_the_way:
        if not isinstance(_at(known, way), dict):
            raise CannotEdit(f"{_shown(way)} is no table, and {_shown(path)} must be one in it")
    newline = _newline(text)
    before = text + newline * (not text.endswith("\n")) + newline if text else ""
    result = before + _block(path, value, newline)
    try:
        parse(result)
    except CannotEdit:
        if not on_the_way:
            raise
        raise _inline(on_the_way[-1], path) from None
    return result


def _inline(table: Path, path: Path) -> CannotEdit:
    """TOML lets nothing be added behind an inline table, and mesh-llm does not rewrite what the user wrote."""
    shown = ".".join(map(_key, table))
    return CannotEdit(
        f"{shown} is written as an inline table ({shown} = {{ ... }}), which is correct, but mesh-llm cannot add "
        f"{'.'.join(map(_key, path))} to it",
        f"Write it as tables with headers ([{shown}.NAME] instead of {shown} = {{ NAME = {{ ... }} }})",
    )


def remove(text: str, path: Path, value: Any, created: int) -> str:
    """`text` without the table `value` at `path`. Raises CannotEdit if `value` is not there any more."""
    del created  # a header makes the tables on the way, and takes them away with it
    before = parse(text)
    if not same(_at(before, path), value):
        raise CannotEdit(f"{_shown(path)} was changed")
    left = [_without(before, path, empty=empty) for empty in (False, True)]  # the user may have their headers, too
    for start, end in _places(text, path, value):
        # The empty line that was added before it.
        blank = 1 if text[:start].endswith("\n\n") else 2 if text[:start].endswith("\n\r\n") else 0
        result = text[: start - blank] + text[end:]
        try:
            if any(same(parse(result), one) for one in left):
                return result
        except CannotEdit:
            continue
    raise CannotEdit(f"{_shown(path)} is not written as a table of its own")


def dump(table: Mapping[str, Any], path: Path = ()) -> str:
    """A table at `path` as TOML."""
    lines = [f"[{'.'.join(map(_key, path))}]"] if path else []
    lines += [f"{_key(key)} = {_scalar(one)}" for key, one in table.items() if not isinstance(one, dict)]
    blocks = [dump(one, (*path, key)) for key, one in table.items() if isinstance(one, dict)]
    return "\n".join(["\n".join(lines) + "\n", *blocks]) if lines else "\n".join(blocks)


def _places(text: str, path: Path, value: Any) -> Iterator[tuple[int, int]]:
    """Where the table may be: as it was added, then from each header to the next, without the comments behind it."""
    block = _block(path, value, _newline(text))
    start = text.find(block)
    while start >= 0:
        yield start, start + len(block)
        start = text.find(block, start + 1)
    headers = [found.start() for found in _HEADER.finditer(text)]
    for start, end in zip(headers, [*headers[1:], len(text)], strict=True):
        trailing = _TRAILING.search(text, start, end)
        yield start, end if trailing is None else trailing.start()


def _block(path: Path, value: Mapping[str, Any], newline: str) -> str:
    return dump(value, path).replace("\n", newline)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _at(value: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _without(value: Any, path: Path, *, empty: bool) -> Any:
    """A copy of `value` without what is at `path`; with the tables on the way that are `empty` then, or without."""
    copy = dict(value)
    if len(path) > 1:
        copy[path[0]] = _without(value[path[0]], path[1:], empty=empty)
        if copy[path[0]] or empty:
            return copy
    del copy[path[0]]
    return copy


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _scalar(value: Any) -> str:
    # Strings, numbers, booleans and lists of them are written as in JSON.
    return json.dumps(value, ensure_ascii=False)


def _shown(path: Path) -> str:
    return ".".join(path) or "the file"
