"""Writes shapes as a JSON schema that the engine's grammar keeps exactly. Pure.

What the engine gets wrong is avoided: lengths count escapes (so they are patterns here), names beside
`additionalProperties` may be no JSON, bounds of numbers are kept for integers only, a reference is one rule for all
schemas whose paths differ in signs alone. An object with named members has no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import ceil, floor
from typing import Any

from meshllm.wire.api import schema_formats, schema_patterns
from meshllm.wire.api.schema_inclusion import included
from meshllm.wire.api.schema_patterns import Chars, Choice, PatternProblem, Regex, Sequence
from meshllm.wire.api.schema_reader import Reader
from meshllm.wire.api.schema_shapes import (
    ANY,
    MAX_ITEMS,
    MAX_LENGTH,
    Anything,
    ArrayShape,
    Bound,
    Constants,
    Excluded,
    NumberShape,
    ObjectShape,
    Reference,
    SchemaProblem,
    Shape,
    StringShape,
    Union,
    number_allows,
    same,
)

# Integers that every JSON parser holds exactly.
_LARGEST = (1 << 53) - 1
# A range of numbers with fractions is written as a list: with as many decimals as have a list of this length.
MAX_GRID = 1001
_DECIMALS = ((3, 201), (2, MAX_GRID), (1, MAX_GRID))
# Arrays of a number of `prefixItems` and more are written out, one alternative for each length.
_MAX_LENGTHS = 16
# Of items that must differ, of which every choice is written out: 32 alternatives.
_MAX_SET = 5
# A longer list of strings is written as one pattern, which the engine follows with fewer alternatives.
_LONG_LIST = 24
# Characters of the written schema that count as one step.
_CHARS = 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Writer:
    """Writes the schema that `reader` reads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._names: dict[str, str] = {}
        self._mark = ""
        self._waiting: list[str] = []
        self._where: list[str] = []

    def write(self, root: Union, *, inline: bool) -> dict[str, Any]:
        """The schema of `root`. `inline`: an object at the top, else a reference (rules get names of their own)."""
        written = self._union(root)
        definitions = {}
        if not inline:
            name = self._name("#answer")
            definitions[name], written = written, {"$ref": f"#/$defs/{name}"}
            self._waiting.remove("#answer")
        while self._waiting:
            pointer = self._waiting.pop()
            self._check_left_recursion(pointer)
            self._where = [step for step in pointer.lstrip("#").split("/") if step]
            definitions[self._names[pointer]] = self._union(self._reader.expand(pointer))
        return {**written, "$defs": definitions} if definitions else written

    def _name(self, pointer: str) -> str:
        """Letters of one length: the engine adds digits to names of its own, and joins them with dashes."""
        if pointer not in self._names:
            number, letters = len(self._names), ""
            for _ in range(4):
                number, rest = divmod(number, len(_LETTERS))
                letters += _LETTERS[rest]
            self._mark = self._mark or self._reader.mark
            self._names[pointer] = f"{self._mark}{letters}"
            self._waiting.append(pointer)
        return self._names[pointer]

    def _check_left_recursion(self, pointer: str) -> None:
        """A schema that can be itself, with nothing around it, has no grammar."""
        seen: set[str] = set()
        todo = [pointer]
        while todo:
            for shape in self._reader.expand(todo.pop()).shapes:
                if isinstance(shape, Reference):
                    if shape.pointer == pointer:
                        raise SchemaProblem("$ref", f"'{pointer}' refers to itself without a value in between")
                    if shape.pointer not in seen:
                        seen.add(shape.pointer)
                        todo.append(shape.pointer)

    def _problem(self, keyword: str, message: str) -> SchemaProblem:
        path = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in (*self._where, keyword))
        return SchemaProblem(keyword, message, path)

    def _at(self, union: Union, *where: object) -> dict[str, Any]:
        self._where += map(str, where)
        found = self._union(union)
        del self._where[len(self._where) - len(where) :]
        return found

    def _union(self, union: Union) -> dict[str, Any]:
        self._reader.spend()
        if not union.shapes:
            raise self._reader.emptied or self._problem("false", "no value can satisfy it")
        constants: list[Any] = []
        written: list[dict[str, Any]] = []
        for shape in union.shapes:
            if isinstance(shape, Constants):
                constants += shape.values
            else:
                written += self._shape(shape)
        if constants:
            written += self._constants(constants)
        if not written:
            raise self._reader.emptied or self._problem("false", "no value can satisfy it")
        found = written[0] if len(written) == 1 else {"anyOf": written}
        return {**found, "description": union.description} if union.description else found

    def _shape(self, shape: Shape) -> list[dict[str, Any]]:
        """The alternatives that a shape is written as."""
        if isinstance(shape, Reference):
            return [{"$ref": f"#/$defs/{self._name(shape.pointer)}"}]
        if isinstance(shape, Anything):
            return [{}]
        if isinstance(shape, Excluded):
            raise self._problem("not", "a value is excluded from more than a list of constants")
        if isinstance(shape, StringShape):
            return [self._text(shape)]
        if isinstance(shape, NumberShape):
            return self._number(shape)
        if isinstance(shape, ArrayShape):
            return self._items(shape)
        assert isinstance(shape, ObjectShape)
        return self._members(shape)

    # -- values

    def _constants(self, values: list[Any]) -> list[dict[str, Any]]:
        for value in values:
            if not _exact(value):
                raise self._problem("enum", "a number in it is too large")
        self._reader.spend(sum(1 + len(value) // _CHARS if isinstance(value, str) else 1 for value in values))
        strings = list(dict.fromkeys(value for value in values if isinstance(value, str)))
        pattern = _pattern_of(strings) if len(strings) > _LONG_LIST else None
        others = values if pattern is None else [value for value in values if not isinstance(value, str)]
        if len(others) > MAX_GRID:
            raise self._problem("enum", f"at most {MAX_GRID} values that are no strings are kept")
        if pattern is None:
            return [{"enum": values}]
        return [{"type": "string", "pattern": pattern}, *([{"enum": others}] if others else [])]

    def _text(self, shape: StringShape) -> dict[str, Any]:
        if shape == StringShape():
            return {"type": "string"}
        most = None if shape.most is None else min(shape.most, max(MAX_LENGTH, shape.least))
        keyword = "minLength" if shape.least else "maxLength"
        if shape.patterns:
            keyword, regex = shape.patterns[0] if len(shape.patterns) == 1 else self._common(shape)
            fitted = schema_patterns.within(regex, shape.least, most)
            if fitted is None:
                keyword = "minLength" if shape.least else "maxLength"
                raise self._problem(keyword, f"it cannot be kept beside this '{shape.patterns[0][0]}'")
            regex = fitted
        else:
            regex = schema_patterns.of_length(shape.least, most)
        try:
            pattern = schema_patterns.write(regex)
            self._reader.spend(len(pattern) // _CHARS)
            return {"type": "string", "pattern": pattern}
        except PatternProblem as problem:
            raise self._problem(keyword, str(problem)) from None

    def _common(self, shape: StringShape) -> tuple[str, Regex]:
        """The pattern whose texts match all others."""
        patterns = [regex for _, regex in shape.patterns]
        self._reader.spend(500 * len(patterns) ** 2)
        for keyword, one in (*shape.patterns, ("format", schema_formats.utc())):
            if all(one is other or included(one, other) for other in patterns):
                return keyword, one
        raise self._problem(shape.patterns[-1][0], "two patterns (or a pattern and a format) for one string")

    # -- numbers

    def _number(self, shape: NumberShape) -> list[dict[str, Any]]:
        if shape == NumberShape():
            return [{"type": "number"}]
        steps = [Fraction(str(step)) for step in shape.steps]
        if shape.whole or any(step.denominator == 1 for step in steps):
            whole = self._integers(replace(shape, whole=True), steps)
            return [whole] if whole is not None else []
        bound = shape.low or shape.high
        if shape.low is not None and shape.high is not None:
            values = _grid(shape, shape.low, shape.high, steps)
            if values:
                return [{"enum": values}]
        if bound is None:
            raise self._problem("multipleOf", "it is kept for integers, and in small ranges only")
        advice = "use type integer, or give a minimum and a maximum that are near each other"
        raise self._problem(bound.keyword, f"bounds of numbers with fractions cannot be kept here: {advice}")

    def _integers(self, shape: NumberShape, steps: list[Fraction]) -> dict[str, Any] | None:
        low = -_LARGEST if shape.low is None else _first_inside(shape.low, up=True)
        high = _LARGEST if shape.high is None else _first_inside(shape.high, up=False)
        if shape.low is not None and low > _LARGEST:
            raise self._problem(shape.low.keyword, "the number is too large")
        if shape.high is not None and high < -_LARGEST:
            raise self._problem(shape.high.keyword, "the number is too large")
        low, high = max(low, -_LARGEST), min(high, _LARGEST)
        if low > high:
            return None
        step = 1
        for one in steps:  # the integers among the multiples of p/q are the multiples of p
            step = step * one.numerator // _gcd(step, one.numerator)
        if step == 1:
            bounded = shape.low is not None or shape.high is not None
            return {"type": "integer", "minimum": low, "maximum": high} if bounded else {"type": "integer"}
        first = -(-low // step) * step
        if (high - first) // step >= MAX_GRID:
            raise self._problem("multipleOf", f"it is kept where at most {MAX_GRID} values are in the bounds")
        values = [value for value in range(first, high + 1, step) if number_allows(shape, value)]
        return {"enum": values} if values else None

    # -- arrays

    def _items(self, shape: ArrayShape) -> list[dict[str, Any]]:
        if shape.contains:
            raise self._problem("contains", "it cannot be kept")
        if shape.unique and (shape.most is None or shape.most > 1):
            return self._sets(shape)
        most = shape.most
        if shape.first and most != 0:
            return self._tuples(shape)
        if most == 0 or not shape.rest.shapes:
            return [{"const": []}]
        if shape.least > MAX_ITEMS:
            raise self._problem("minItems", f"at most {MAX_ITEMS} can be kept")
        if shape.rest == ANY and not shape.least and most is None:
            return [{"type": "array"}]
        written: dict[str, Any] = {"type": "array", "items": self._at(shape.rest, "items")}
        if shape.least:
            written["minItems"] = shape.least
        if most is not None:
            written["maxItems"] = min(most, MAX_ITEMS)
        return [written]

    def _sets(self, shape: ArrayShape) -> list[dict[str, Any]]:
        """Arrays without equal items, of a few constants: each choice of them, in the order of the list."""
        rest = shape.rest.shapes
        if len(rest) == 1 and isinstance(rest[0], Reference):
            rest = self._reader.expand(rest[0].pointer).shapes
        if shape.first or len(rest) != 1 or not isinstance(rest[0], Constants) or len(rest[0].values) > _MAX_SET:
            raise self._problem("uniqueItems", f"it is kept for items of at most {_MAX_SET} constants")
        values: list[Any] = []
        for value in rest[0].values:
            if not any(same(value, other) for other in values):
                values.append(value)
        longest = len(values) if shape.most is None else min(shape.most, len(values))
        choices = [choice for length in range(shape.least, longest + 1) for choice in combinations(values, length)]
        if not choices:
            raise self._problem("uniqueItems", "no value can satisfy it")
        places = [[{"const": value} for value in choice] for choice in choices if choice]
        empty: list[dict[str, Any]] = [{"const": []}] if () in choices else []
        return [*({"type": "array", "prefixItems": items} for items in places), *empty]

    def _tuples(self, shape: ArrayShape) -> list[dict[str, Any]]:
        """Arrays with schemas by place: as long as the list of these, unless more or fewer are asked for."""
        places = len(shape.first)
        shortest = max(shape.least, min(places, places if shape.most is None else shape.most))
        open_ended = shape.rest.shapes and shape.rest != ANY
        longest = shape.most if open_ended else shortest
        if longest is None or longest - shortest >= _MAX_LENGTHS or longest > places + 4 * _MAX_LENGTHS:
            raise self._problem("items", f"beside 'prefixItems', at most {_MAX_LENGTHS} lengths ('maxItems') are kept")
        places_written = [
            self._at(shape.first[place] if place < places else shape.rest, "prefixItems", place)
            for place in range(longest)
        ]
        lengths = range(shortest, longest + 1)
        tuples = [{"type": "array", "prefixItems": places_written[:length]} for length in lengths if length]
        return [*tuples, *([{"const": []}] if 0 in lengths else [])]

    # -- objects

    def _members(self, shape: ObjectShape) -> list[dict[str, Any]]:
        members = {name: union for name, union in shape.members.items() if union.shapes}
        if shape.names is not None and shape.others.shapes:
            members |= {name: shape.others for name in shape.names if name not in shape.members}
        if not members:
            return [self._map(shape)]
        required = [name for name in members if name in shape.required]
        optional = [name for name in members if name not in shape.required]
        if shape.most is not None and shape.most < len(members):
            if shape.most > len(required):
                raise self._problem("maxProperties", "it is kept where it is the number of required members, or of all")
            optional = []
        if shape.least <= len(required):
            choices = [required]
        elif shape.least == len(required) + 1:
            choices = [[*required, name] for name in optional]
        elif shape.least == len(members):
            choices = [[*required, *optional]]
        else:
            raise self._problem("minProperties", "it is kept up to one more than the required members, or for all")
        written = {name: self._at(members[name], "properties", name) for name in (*required, *optional)}
        names = [name for name in members if name in written]
        found = [self._object({name: written[name] for name in names}, choice) for choice in choices]
        if not found:
            raise self._problem("minProperties", "no value can satisfy it")
        return found

    def _object(self, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
            "additionalProperties": False,
        }

    def _map(self, shape: ObjectShape) -> dict[str, Any]:
        """An object whose names are free."""
        if not shape.others.shapes or shape.most == 0 or shape.names == ():
            if shape.least:
                raise self._problem("minProperties", "no value can satisfy it")
            return {"type": "object", "properties": {}, "additionalProperties": False}
        if shape.least:
            raise self._problem("minProperties", "it is kept for objects with 'properties' only")
        if shape.most is not None:
            raise self._problem("maxProperties", "it is kept for objects with 'properties' only")
        if any(not union.shapes for union in shape.members.values()):
            return {"type": "object", "properties": {}, "additionalProperties": False}  # some names are forbidden
        if shape.others == ANY:
            return {"type": "object"}
        return {"type": "object", "additionalProperties": self._at(shape.others, "additionalProperties")}


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


def _first_inside(bound: Bound, *, up: bool) -> int:
    nearest = ceil(bound.value) if up else floor(bound.value)
    return nearest + (1 if up else -1) if bound.open and nearest == bound.value else nearest


def _exact(value: Any) -> bool:
    """Whether the engine writes a constant as it is: its integers have 64 bits."""
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    if isinstance(value, list):
        return all(map(_exact, value))
    return all(map(_exact, value.values())) if isinstance(value, dict) else True


def _grid(shape: NumberShape, low: Bound, high: Bound, steps: list[Fraction]) -> list[float]:
    """The numbers of a range with as many decimals as fit into the list; empty: with none."""
    first, last = Fraction(str(low.value)), Fraction(str(high.value))
    widths = [(Fraction(1, 10**decimals), longest) for decimals, longest in _DECIMALS]
    for width, longest in [(max(steps), MAX_GRID)] if steps else widths:
        if (last - first) / width < longest:
            start = ceil(first / width)
            values = [float(width * place) for place in range(start, floor(last / width) + 1)]
            ends = [] if steps else [float(low.value), float(high.value)]
            found = [value for value in dict.fromkeys((*values, *ends)) if number_allows(shape, value)]
            return sorted(int(value) if value == int(value) else value for value in found)
    return []


def _pattern_of(strings: Iterable[str]) -> str | None:
    """One pattern for a list of strings, their common beginnings once; None if it is too deep."""
    try:
        return schema_patterns.write(_tree(sorted(strings), 0))
    except PatternProblem:
        return None


def _tree(strings: list[str], depth: int) -> Regex:
    if depth > schema_patterns.MAX_DEPTH // 2:
        raise PatternProblem("it is nested too deeply")
    first, last = strings[0], strings[-1]
    shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    head = [Chars(((ord(char), ord(char)),)) for char in first[:shared]]
    branches: dict[str, list[str]] = {}
    for string in strings:
        branches.setdefault(string[shared : shared + 1], []).append(string[shared:])
    if list(branches) == [""]:
        return Sequence(tuple(head))
    options = tuple(Sequence(()) if not char else _tree(rest, depth + 1) for char, rest in branches.items())
    return Sequence((*head, Choice(options)))
