"""What the text editors of all formats share: paths, their error, and the check of an edit. Pure."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Path = tuple[str, ...]
# As the last step of a path: a further item of a list.
APPEND = "[]"


class CannotEdit(ValueError):
    """A text that is not of its format, or that has no place for an addition or lacks it; says where. `advice`: what
    its user can do, if the text itself is correct."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How the texts of one format are read and edited. `add` and `remove` raise CannotEdit; `empty` is an empty file
    that `add` accepts."""

    parse: Callable[[str], Any]
    add: Callable[[str, Path, Any], str]
    remove: Callable[[str, Path, Any, int], str]
    empty: str


@dataclass(frozen=True, slots=True)
class Addition:
    """A value that was added at `path`; the steps of the path from number `created` on were not there before.
    `volatile`: members of it that the agent writes itself, such as the time of the last use."""

    path: Path
    value: Any
    created: int
    volatile: tuple[str, ...] = ()


def add_checked(
    form: TextFormat, text: str, path: Path, value: Any, volatile: tuple[str, ...] = ()
) -> tuple[str, Addition]:
    """`text` with `value` at `path`. The result is read again: it must say what was there, and the value.

    Raises CannotEdit.
    """
    before = form.parse(text)
    created = _present(before, path)
    result = form.add(text, path, value)
    if not same(form.parse(result), _with(before, path, value)):
        raise CannotEdit("its layout is not understood")
    return result, Addition(path, value, created, volatile)


def remove_checked(form: TextFormat, text: str, addition: Addition) -> str:
    """`text` without what was added. Raises CannotEdit, also if the value there was changed meanwhile."""
    now = form.parse(text)
    value = _current(addition, now)
    result = form.remove(text, addition.path, value, addition.created)
    # Adding it again must give what was there. An item may have had others behind it.
    again = _with(form.parse(result), addition.path, value)
    if not (same(again, now) or addition.path[-1] == APPEND):
        raise CannotEdit("its layout is not understood")
    return result


def nested(path: Path, value: Any) -> Any:
    """`value` within the objects and the list that `path` names."""
    for key in reversed(path):
        value = [value] if key == APPEND else {key: value}
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, types included: 1 is neither true nor 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _current(addition: Addition, data: Any) -> Any:
    """The value that was added, with its volatile members as they are in `data` now."""
    for key in addition.path if addition.volatile else ():
        data = data.get(key) if isinstance(data, dict) else None
    if not addition.volatile or not isinstance(data, dict):
        return addition.value
    return {key: data.get(key, one) if key in addition.volatile else one for key, one in addition.value.items()}


def _present(value: Any, path: Path) -> int:
    """How many steps of `path` exist."""
    for depth, key in enumerate(path):
        if key == APPEND or not isinstance(value, dict) or key not in value:
            return depth
        value = value[key]
    return len(path)


def _with(value: Any, path: Path, added: Any) -> Any:
    """A copy of `value` with `added` at `path`."""
    if not path:
        return added
    if path[0] == APPEND:
        return [*(value if isinstance(value, list) else []), added]
    copy = dict(deepcopy(value)) if isinstance(value, dict) else {}
    copy[path[0]] = _with(copy.get(path[0]), path[1:], added)
    return copy
