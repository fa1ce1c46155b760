"""The values that a JSON schema allows, as a union of shapes: one type and its bounds each. Pure.

`meet` intersects two unions: `allOf`, `$ref` with siblings, and `anyOf` beside `properties` become schemas without
such combinations, which is what the engine's grammar keeps. A union may allow less than the schema, never more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import lcm
from typing import Any

from meshllm.wire.api.schema_patterns import PatternProblem, Regex, matches

# Shapes in one union: the engine follows all of them at once.
MAX_UNION = 200
# Longer strings are ended: the engine writes out every repetition.
MAX_LENGTH = 10_000
MAX_ITEMS = 2000
_DEEPEST = 40


class SchemaProblem(ValueError):
    """A keyword that cannot be kept, and why. `pointer`: where it stands, as far as it is known here."""

    def __init__(self, keyword: str, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.keyword = keyword
        self.message = message
        self.pointer = pointer


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """One of some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Excluded:
    """Any JSON but these values."""

    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a range of numbers. `open`: the value itself is outside."""

    value: float
    open: bool = False
    keyword: str = ""


@dataclass(frozen=True, slots=True)
class NumberShape:
    """A number within bounds; `whole`: an integer. `step`: the values of `multipleOf`."""

    low: Bound | None = None
    high: Bound | None = None
    whole: bool = False
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StringShape:
    """A string of `least` to `most` characters; each of `patterns` matches all of it."""

    least: int = 0
    most: int | None = None
    patterns: tuple[tuple[str, Regex], ...] = ()  # with the keyword that asked for it


def _any() -> Union:
    return ANY


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """An array: `first` by place, then `rest`."""

    first: tuple[Union, ...] = ()
    rest: Union = field(default_factory=_any)
    least: int = 0
    most: int | None = None
    unique: bool = False
    contains: tuple[Union, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """An object. `others`: values of names that `members` does not have; `names`: the only allowed ones.

    `unnamed`: members that are only required, or only denied; for `unevaluatedProperties` they are none.
    """

    members: Mapping[str, Union] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    others: Union = field(default_factory=_any)
    names: tuple[str, ...] | None = None
    least: int = 0
    most: int | None = None
    unnamed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reference:
    """The values of the schema at a pointer; it may contain itself."""

    pointer: str


Shape = Anything | Constants | Excluded | NumberShape | StringShape | ArrayShape | ObjectShape | Reference


@dataclass(frozen=True, slots=True)
class Union:
    """Values that any of `shapes` allows; none: no value at all."""

    shapes: tuple[Shape, ...]
    description: str = ""


ANY = Union((Anything(),))


NEVER = Union(())
NULL = Constants((None,))
BOOLEAN = Constants((True, False))
OF_TYPE: dict[str, Shape] = {
    "object": ObjectShape(),
    "array": ArrayShape(),
    "string": StringShape(),
    "number": NumberShape(),
    "integer": NumberShape(whole=True),
    "boolean": BOOLEAN,
    "null": NULL,
}
TYPES = ("object", "array", "string", "number", "boolean", "null")


def join(unions: Iterable[Union]) -> Union:
    """Values that any of several unions allows."""
    shapes = tuple(shape for union in unions for shape in union.shapes)
    if any(isinstance(shape, Anything) for shape in shapes):
        return ANY
    return Union(_bounded(shapes))


def _bounded(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    if len(shapes) > MAX_UNION:
        raise SchemaProblem("anyOf", f"its combinations make more than {MAX_UNION} alternatives")
    return shapes


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal as JSON: `true` is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


class Meeting:
    """Intersects unions; `expand` gives the values of a reference. `spend` counts the work."""

    def __init__(self, expand: Callable[[str], Union], spend: Callable[[int], None]) -> None:
        self._expand = expand
        self._spend = spend
        self._depth = 0

    def meet(self, left: Union, right: Union) -> Union:
        """Values that both allow."""
        if _is_any(left) or _is_any(right):
            found = right if _is_any(left) else left
            described = left.description or right.description
            return found if found.description == described else replace(found, description=described)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise SchemaProblem("$ref", "a schema that contains itself is combined with another")
        shapes: list[Shape] = []
        for a in left.shapes:
            for b in right.shapes:
                self._spend(1)
                shapes += self._pair(a, b)
            _bounded(tuple(shapes))
        self._depth -= 1
        return Union(tuple(shapes), left.description or right.description)

    def _pair(self, a: Shape, b: Shape) -> tuple[Shape, ...]:
        if isinstance(a, Anything) or a is b or (isinstance(a, Reference) and a == b):
            return (b,)
        if isinstance(b, Anything):
            return (a,)
        if isinstance(a, Reference):
            return self.meet(self._expand(a.pointer), Union((b,))).shapes
        if isinstance(b, Reference):
            return self.meet(Union((a,)), self._expand(b.pointer)).shapes
        if isinstance(b, Constants):
            a, b = b, a
        if isinstance(a, Constants):
            values = tuple(value for value in a.values if self.allows(b, value))
            return (Constants(values),) if values else ()
        if isinstance(a, Excluded) or isinstance(b, Excluded):
            return self._without(a, b)
        merged: Shape | None = None
        if isinstance(a, NumberShape) and isinstance(b, NumberShape):
            merged = _meet_numbers(a, b)
        elif isinstance(a, StringShape) and isinstance(b, StringShape):
            merged = _meet_texts(a, b)
        elif isinstance(a, ArrayShape) and isinstance(b, ArrayShape):
            merged = self._meet_items(a, b)
        elif isinstance(a, ObjectShape) and isinstance(b, ObjectShape):
            merged = self._meet_members(a, b)
        return () if merged is None else (merged,)

    def _without(self, a: Shape, b: Shape) -> tuple[Shape, ...]:
        if isinstance(a, Excluded) and isinstance(b, Excluded):
            return (Excluded(a.values + b.values),)
        excluded, shape = (a, b) if isinstance(a, Excluded) else (b, a)
        assert isinstance(excluded, Excluded)
        if any(self.allows(shape, value) for value in excluded.values):
            raise SchemaProblem("not", "a value is excluded from more than a list of constants")
        return (shape,)

    def _meet_items(self, a: ArrayShape, b: ArrayShape) -> Shape | None:
        places = max(len(a.first), len(b.first))
        most = _least_of(a.most, b.most)
        first = tuple(self.meet(_at(a, place), _at(b, place)) for place in range(places))
        rest = self.meet(a.rest, b.rest)
        contains = a.contains + tuple(union for union in b.contains if union not in a.contains)
        met = ArrayShape(first, rest, max(a.least, b.least), most, a.unique or b.unique, contains)
        return settled_items(met)

    def _meet_members(self, a: ObjectShape, b: ObjectShape) -> Shape | None:
        members = {
            name: self.meet(a.members.get(name, a.others), b.members.get(name, b.others))
            for name in dict.fromkeys((*a.members, *b.members))
        }
        names = a.names if b.names is None else b.names
        if a.names is not None and b.names is not None:
            names = tuple(name for name in a.names if name in b.names)
        required = tuple(dict.fromkeys((*a.required, *b.required)))
        others = self.meet(a.others, b.others)
        unnamed = frozenset(name for name in a.unnamed | b.unnamed if not _names(a, name) and not _names(b, name))
        met = ObjectShape(members, required, others, names, max(a.least, b.least), _least_of(a.most, b.most), unnamed)
        return settled_members(met)

    def allows(self, shape: Shape, value: Any) -> bool:
        """Whether `shape` allows a value."""
        self._spend(1)
        if isinstance(shape, Anything):
            return True
        if isinstance(shape, Constants | Excluded):
            self._spend(len(shape.values) // 8)
            return any(same(value, one) for one in shape.values) is isinstance(shape, Constants)
        if isinstance(shape, Reference):
            return self._any_allows(self._expand(shape.pointer), value)
        if isinstance(shape, NumberShape):
            return isinstance(value, int | float) and not isinstance(value, bool) and number_allows(shape, value)
        if isinstance(shape, StringShape):
            self._spend(200 * len(shape.patterns))
            return isinstance(value, str) and _text_allows(shape, value)
        if isinstance(shape, ArrayShape):
            return isinstance(value, list) and self._items_allow(shape, value)
        return isinstance(value, dict) and self._members_allow(shape, value)

    def _any_allows(self, union: Union, value: Any) -> bool:
        return any(self.allows(shape, value) for shape in union.shapes)

    def _items_allow(self, shape: ArrayShape, value: list[Any]) -> bool:
        if len(value) < shape.least or (shape.most is not None and len(value) > shape.most):
            return False
        if shape.unique and any(same(one, other) for at, one in enumerate(value) for other in value[:at]):
            return False
        if any(not any(self._any_allows(union, one) for one in value) for union in shape.contains):
            return False
        return all(self._any_allows(_at(shape, place), one) for place, one in enumerate(value))

    def _members_allow(self, shape: ObjectShape, value: dict[str, Any]) -> bool:
        if len(value) < shape.least or (shape.most is not None and len(value) > shape.most):
            return False
        if any(name not in value for name in shape.required):
            return False
        if shape.names is not None and any(name not in shape.names for name in value):
            return False
        return all(self._any_allows(shape.members.get(name, shape.others), one) for name, one in value.items())


def _is_any(union: Union) -> bool:
    return len(union.shapes) == 1 and isinstance(union.shapes[0], Anything)


def _names(shape: ObjectShape, name: str) -> bool:
    return name in shape.members and name not in shape.unnamed


def _at(items: ArrayShape, place: int) -> Union:
    return items.first[place] if place < len(items.first) else items.rest


def _least_of(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)


def settled_items(items: ArrayShape) -> ArrayShape | None:
    """The same arrays, without places that no value can take; None if there are none."""
    most = items.most
    for place, union in enumerate(items.first):
        if not union.shapes:
            most = _least_of(most, place)
    if not items.rest.shapes:
        most = _least_of(most, len(items.first))
    if most is not None and most < items.least:
        return None
    return replace(items, most=most)


def settled_members(shape: ObjectShape) -> ObjectShape | None:
    """The same objects, without members that no value can take; None if a required one is such."""
    members = {
        name: union
        for name, union in shape.members.items()
        if union.shapes and (shape.names is None or name in shape.names)
    }
    for name in shape.required:
        if name in shape.members or (shape.names is not None and name not in shape.names):
            if name not in members:
                return None
        elif not shape.others.shapes:
            return None
        else:
            members[name] = shape.others
    unnamed = shape.unnamed | (members.keys() - shape.members.keys())
    gone = [name for name in shape.members if name not in members]
    if gone and shape.others.shapes and shape.names is None:
        members |= dict.fromkeys(gone, NEVER)  # still forbidden when met with another shape
    if shape.most is not None and shape.most < max(len(shape.required), shape.least):
        return None
    return replace(shape, members=members, unnamed=unnamed)


def closed(union: Union) -> Union:
    """The same values without objects that have members which no schema names (`unevaluatedProperties`: false)."""
    shapes: list[Shape] = []
    for shape in union.shapes:
        if not isinstance(shape, ObjectShape):
            shapes.append(shape)
        elif not shape.unnamed & set(shape.required):
            members = {name: member for name, member in shape.members.items() if name not in shape.unnamed}
            shapes.append(replace(shape, members=members, others=NEVER))
    return Union(tuple(shapes), union.description)


def without_names(union: Union) -> Union:
    """The same values; no member counts as named, because a negated schema names none."""
    shapes = (
        replace(shape, unnamed=frozenset(shape.members)) if isinstance(shape, ObjectShape) else shape
        for shape in union.shapes
    )
    return Union(tuple(shapes), union.description)


def number_allows(shape: NumberShape, value: float) -> bool:
    """Whether a number is within the bounds and steps."""
    if shape.whole and value != int(value):
        return False
    low, high = shape.low, shape.high
    if low is not None and (value < low.value or (low.open and value == low.value)):
        return False
    if high is not None and (value > high.value or (high.open and value == high.value)):
        return False
    # As validators compute it: with floats, which do not hold every decimal.
    return all((value / step).is_integer() if isinstance(step, float) else value % step == 0 for step in shape.steps)


def _meet_numbers(a: NumberShape, b: NumberShape) -> NumberShape | None:
    lows = [bound for bound in (a.low, b.low) if bound is not None]
    highs = [bound for bound in (a.high, b.high) if bound is not None]
    low = max(lows, key=lambda bound: (bound.value, bound.open), default=None)
    high = min(highs, key=lambda bound: (bound.value, not bound.open), default=None)
    if low is not None and high is not None:
        empty = low.value > high.value or (low.value == high.value and (low.open or high.open))
        if empty:
            return None
    steps = tuple(dict.fromkeys((*a.steps, *b.steps)))
    if all(isinstance(step, int) for step in steps) and len(steps) > 1:
        steps = (reduce(lcm, (int(step) for step in steps)),)
    return NumberShape(low, high, a.whole or b.whole, steps)


def _meet_texts(a: StringShape, b: StringShape) -> StringShape | None:
    least, most = max(a.least, b.least), _least_of(a.most, b.most)
    known = [regex for _, regex in a.patterns]
    patterns = a.patterns + tuple(one for one in b.patterns if one[1] not in known)
    return None if most is not None and most < least else StringShape(least, most, patterns)


def _text_allows(shape: StringShape, value: str) -> bool:
    if len(value) < shape.least or (shape.most is not None and len(value) > shape.most):
        return False
    try:
        return all(matches(regex, value) for _, regex in shape.patterns)
    except PatternProblem as problem:
        raise SchemaProblem(shape.patterns[0][0], str(problem)) from None
