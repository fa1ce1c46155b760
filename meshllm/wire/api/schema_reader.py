"""Reads a JSON schema (draft 2020-12, and the older names that clients send) into shapes. Pure; bounded by a budget.

Every keyword that asserts something is either part of the shapes or raises SchemaProblem with its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from meshllm.wire.api import schema_formats, schema_patterns
from meshllm.wire.api.engine_bounds import LARGEST
from meshllm.wire.api.schema_negation import Negation
from meshllm.wire.api.schema_patterns import PatternProblem
from meshllm.wire.api.schema_shapes import (
    ANY,
    NEVER,
    OF_TYPE,
    TYPES,
    Anything,
    ArrayShape,
    Bound,
    Constants,
    Excluded,
    Meeting,
    NumberShape,
    ObjectShape,
    Reference,
    SchemaProblem,
    Shape,
    StringShape,
    Union,
    closed,
    join,
    settled_items,
    settled_members,
    without_names,
)

# Schemas read, shapes met and parts written, for one schema: a large one of an API has some 1,000 parts.
BUDGET = 50_000
_DEEPEST = 64

# The types that a keyword says something about.
KEYWORDS = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties"),
        *("maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
    ),
    "array": (
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains"),
        "unevaluatedItems",
    ),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_TYPE_OF = {keyword: kind for kind, keywords in KEYWORDS.items() for keyword in keywords}
Types = frozenset[str] | None


class Reader:
    """Reads one root schema. Types of `type` are handed down to `anyOf`, `allOf` and `if` beside it, which often have
    none; a schema without any is read as of the types its keywords are about."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._left = BUDGET
        self._read: dict[str, Union] = {}
        self._reading: set[str] = set()
        self._where: list[str] = []
        self.emptied: SchemaProblem | None = None
        self.meeting = Meeting(self.expand, self.spend)
        self._negation = Negation(self)

    @property
    def mark(self) -> str:
        """Begins the names of definitions. The engine shares its rules for them among the tools of a request, so the
        same name may stand for the same schema only."""
        digest = hashlib.sha256(json.dumps(self.root, sort_keys=True).encode("utf-8", "replace")).digest()
        return "z" + "".join(chr(ord("a") + byte % 26) for byte in digest[:10])

    def spend(self, steps: int = 1) -> None:
        """Count steps; SchemaProblem if there were too many."""
        self._left -= steps
        if self._left < 0:
            raise SchemaProblem("schema", "it has too many combinations to be compiled")

    def problem(self, keyword: str, message: str) -> SchemaProblem:
        """A problem at the place that is read now."""
        path = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in (*self._where, keyword))
        return SchemaProblem(keyword, message, path)

    def expand(self, pointer: str) -> Union:
        """The values of the schema at `pointer` of the root (`#/$defs/x`, `#name`)."""
        if pointer in self._read:
            return self._read[pointer]
        if pointer in self._reading:
            raise self.problem("$ref", f"'{pointer}' refers to itself without a value in between")
        self._reading.add(pointer)
        before, self._where = self._where, [step for step in pointer.lstrip("#").split("/") if step]
        self._read[pointer] = self.read(self.target(pointer), None)
        self._where = before
        self._reading.discard(pointer)
        return self._read[pointer]

    def target(self, pointer: str) -> Any:
        """The schema that a `$ref` names."""
        if not isinstance(pointer, str):
            raise self.problem("$ref", "it must be a string")
        address = self.root.get("$id") if isinstance(self.root, dict) else None
        if isinstance(address, str) and address and pointer.partition("#")[0] == address.rstrip("#"):
            pointer = "#" + pointer.partition("#")[2]
        if not pointer.startswith("#"):
            raise self.problem("$ref", "only references into the same schema ('#/...') are supported")
        if pointer != "#" and not pointer.startswith("#/"):
            return self._anchored(pointer[1:])
        found = self.root
        for step in unquote(pointer).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise self.problem("$ref", f"'{pointer}' is not in the schema")
        return found

    def _anchored(self, name: str) -> Any:
        for definitions in ("$defs", "definitions"):
            found = self.root.get(definitions) if isinstance(self.root, dict) else None
            for schema in found.values() if isinstance(found, dict) else ():
                if isinstance(schema, dict) and schema.get("$anchor") == name:
                    return schema
        raise self.problem("$ref", f"the anchor '{name}' is not in '$defs'")

    def read_at(self, schema: Any, types: Types, *where: object) -> Union:
        """`read`, of a part of the schema that is read now."""
        self._where += map(str, where)
        found = self.read(schema, types)
        del self._where[len(self._where) - len(where) :]
        return found

    def read(self, schema: Any, types: Types) -> Union:
        """The values that `schema` allows, within `types` if these are known."""
        self.spend()
        if schema is True or schema is False:
            return ANY if schema else NEVER
        if not isinstance(schema, dict):
            raise self.problem("schema", "a schema must be an object, true or false")
        if len(self._where) > 2 * _DEEPEST:
            raise self.problem("schema", "it is nested too deeply")
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            raise self.problem("$dynamicRef", "dynamic references are not supported")
        if self._where and isinstance(schema.get("$id"), str) and not schema["$id"].startswith("#"):
            raise self.problem("$id", "a schema with an address of its own inside another is not supported")
        description = schema.get("description")
        known = self._types(schema, types)
        found = self._own(schema, known)
        for keyword in schema:
            if (rule := _IN_PLACE.get(keyword)) is not None and found.shapes:
                found = self.meeting.meet(found, rule(self, schema, known))
                if not found.shapes and self.emptied is None:
                    self.emptied = self.problem(keyword, "no value can satisfy it")
        if schema.get("unevaluatedProperties", True) is not True and _applied(schema):
            found = self._closed(schema, found)
        if isinstance(description, str) and description:
            found = replace(found, description=description)
        return found

    def _closed(self, schema: Mapping[str, Any], found: Union) -> Union:
        """`unevaluatedProperties` beside schemas in place, whose members count as well."""
        if schema["unevaluatedProperties"] is not False:
            raise self.problem("unevaluatedProperties", "only false can be kept beside schemas that apply in place")
        shapes = [
            inner
            for shape in found.shapes
            for inner in (self.expand(shape.pointer).shapes if isinstance(shape, Reference) else (shape,))
        ]
        if any(isinstance(shape, Anything | Reference | Excluded) for shape in shapes):
            raise self.problem("unevaluatedProperties", "it cannot be kept without 'properties'")
        return closed(Union(tuple(shapes)))

    # -- types and their own keywords

    def _types(self, schema: Mapping[str, Any], given: Types) -> Types:
        """The types that are allowed; None if nothing tells."""
        declared = schema.get("type")
        if declared is not None:
            names = declared if isinstance(declared, list) else [declared]
            for name in names:
                if not isinstance(name, str) or name not in OF_TYPE:
                    raise self.problem("type", f"{name!r} is no type of JSON Schema")
            return frozenset(names) if given is None else frozenset(_common_types(names, given))
        if given is not None:
            return given
        inferred = frozenset(_TYPE_OF[keyword] for keyword in schema if keyword in _TYPE_OF)
        return inferred or None

    def _own(self, schema: Mapping[str, Any], types: Types) -> Union:
        """What the schema itself says, without the schemas that apply beside it."""
        if types is None:
            found = ANY
        else:
            order = [kind for kind in ("object", "array", "string", "number", "integer") if kind in types]
            if "number" in order and "integer" in order:
                order.remove("integer")
            shapes = [shape for kind in order if (shape := self._shape(kind, schema)) is not None]
            found = Union((*shapes, *(OF_TYPE[kind] for kind in ("boolean", "null") if kind in types)))
        if "const" in schema:
            found = self.meeting.meet(found, Union((Constants((schema["const"],)),)))
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise self.problem("enum", "it must be a list of at least one value")
            found = self.meeting.meet(found, Union((Constants(tuple(values)),)))
        return found

    def _shape(self, kind: str, schema: Mapping[str, Any]) -> Shape | None:
        if not any(keyword in schema for keyword in KEYWORDS["number" if kind == "integer" else kind]):
            return OF_TYPE[kind]
        if kind == "object":
            return self._members(schema)
        if kind == "array":
            return self._items(schema)
        return self._text(schema) if kind == "string" else self._number(schema, whole=kind == "integer")

    def _count(self, schema: Mapping[str, Any], keyword: str) -> int | None:
        value = schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, int | float) and abs(value) >= LARGEST:
            raise self.problem(keyword, "it is too large: numbers must fit into 64 bits")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
            raise self.problem(keyword, "it must be a whole number, 0 or more")
        return int(value)

    def _text(self, schema: Mapping[str, Any]) -> StringShape | None:
        patterns = []
        if (pattern := schema.get("pattern")) is not None:
            if not isinstance(pattern, str):
                raise self.problem("pattern", "it must be a string")
            try:
                patterns.append(("pattern", schema_patterns.parse(pattern)))
            except PatternProblem as problem:
                raise self.problem("pattern", f"{pattern!r}: {problem}") from None
        if isinstance(name := schema.get("format"), str):
            if name in schema_formats.UNSUPPORTED:
                raise self.problem("format", f"the format {name!r} cannot be kept")
            if (regex := schema_formats.of_format(name)) is not None:
                patterns += [("format", regex)] if all(regex != other for _, other in patterns) else []
        least, most = self._count(schema, "minLength") or 0, self._count(schema, "maxLength")
        return None if most is not None and most < least else StringShape(least, most, tuple(patterns))

    def _number(self, schema: Mapping[str, Any], *, whole: bool) -> NumberShape | None:
        low = self._bound(schema, "minimum", is_open=False)
        high = self._bound(schema, "maximum", is_open=False)
        open_low, open_high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if low is not None and open_low is True:  # as draft 4 has it
            low = replace(low, open=True)
        if high is not None and open_high is True:
            high = replace(high, open=True)
        bounds = [NumberShape(low, high, whole)]
        if not isinstance(open_low, bool):
            bounds.append(NumberShape(low=self._bound(schema, "exclusiveMinimum", is_open=True)))
        if not isinstance(open_high, bool):
            bounds.append(NumberShape(high=self._bound(schema, "exclusiveMaximum", is_open=True)))
        step = self._amount(schema, "multipleOf")
        if step is not None:
            if step <= 0:
                raise self.problem("multipleOf", "it must be more than 0")
            bounds.append(NumberShape(steps=(int(step) if step == int(step) else step,)))
        found: Union = Union((bounds[0],))
        for bound in bounds[1:]:
            found = self.meeting.meet(found, Union((bound,)))
        return next((shape for shape in found.shapes if isinstance(shape, NumberShape)), None)

    def _amount(self, schema: Mapping[str, Any], keyword: str) -> float | None:
        value = schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise self.problem(keyword, "it must be a number")
        return value

    def _bound(self, schema: Mapping[str, Any], keyword: str, *, is_open: bool) -> Bound | None:
        value = self._amount(schema, keyword)
        return None if value is None else Bound(value, is_open, keyword)

    def _items(self, schema: Mapping[str, Any]) -> ArrayShape | None:
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # as older drafts have it
            first, rest = rest, schema.get("additionalItems", True)
        if not isinstance(first, list):
            raise self.problem("prefixItems", "it must be a list of schemas")
        places = tuple(self.read_at(place, None, "prefixItems", index) for index, place in enumerate(first))
        if "unevaluatedItems" in schema and "items" not in schema:
            rest = schema["unevaluatedItems"]
            if _applied(schema) or "contains" in schema:
                raise self.problem("unevaluatedItems", "it cannot be kept beside schemas that apply in place")
        contains: tuple[Union, ...] = ()
        least_found = self._count(schema, "minContains")
        if "contains" in schema:
            if least_found not in (None, 1, 0) or "maxContains" in schema:
                raise self.problem("minContains" if "minContains" in schema else "maxContains", "it cannot be kept")
            if least_found != 0:
                contains = (self.read_at(schema["contains"], None, "contains"),)
        least, most = self._count(schema, "minItems") or 0, self._count(schema, "maxItems")
        unique = schema.get("uniqueItems") is True
        return settled_items(ArrayShape(places, self.read_at(rest, None, "items"), least, most, unique, contains))

    # -- objects

    def _members(self, schema: Mapping[str, Any]) -> ObjectShape | None:
        properties = schema.get("properties")
        if properties is not None and not isinstance(properties, dict):
            raise self.problem("properties", "it must be an object of schemas")
        members = {name: self.read_at(member, None, "properties", name) for name, member in (properties or {}).items()}
        if schema.get("patternProperties"):
            raise self.problem("patternProperties", "names by pattern cannot be kept")
        others = ANY
        if "additionalProperties" in schema:
            others = self.read_at(schema["additionalProperties"], None, "additionalProperties")
        elif "unevaluatedProperties" in schema and not _applied(schema):
            others = self.read_at(schema["unevaluatedProperties"], None, "unevaluatedProperties")
        required = schema.get("required") or []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self.problem("required", "it must be a list of names")
        names = self._names(schema["propertyNames"], [*members, *required]) if "propertyNames" in schema else None
        least, most = self._count(schema, "minProperties") or 0, self._count(schema, "maxProperties")
        return settled_members(ObjectShape(members, tuple(dict.fromkeys(required)), others, names, least, most))

    def _names(self, schema: Any, given: list[str]) -> tuple[str, ...] | None:
        """The names that `propertyNames` allows: those it lists, or the ones of `given`; None if it allows all."""
        found = self.meeting.meet(self.read_at(schema, None, "propertyNames"), Union((StringShape(),)))
        if found.shapes == (StringShape(),):
            return None
        if all(isinstance(shape, Constants) for shape in found.shapes):
            return tuple(value for shape in found.shapes if isinstance(shape, Constants) for value in shape.values)
        if not given:
            raise self.problem("propertyNames", "names by pattern or length cannot be kept without 'properties'")
        return tuple(name for name in given if any(self.meeting.allows(shape, name) for shape in found.shapes))

    def _dependent_required(self, schema: Mapping[str, Any], types: Types) -> Union:
        return self._dependent(schema, "dependentRequired", types)

    def _dependent_schemas(self, schema: Mapping[str, Any], types: Types) -> Union:
        return self._dependent(schema, "dependentSchemas", types)

    def _dependencies(self, schema: Mapping[str, Any], types: Types) -> Union:
        return self._dependent(schema, "dependencies", types)

    def _dependent(self, schema: Mapping[str, Any], keyword: str, types: Types) -> Union:
        """For each name: either it is missing, or what depends on it holds."""
        wanted = schema[keyword]
        if not isinstance(wanted, dict):
            raise self.problem(keyword, "it must be an object")
        found = ANY
        for name, then in wanted.items():
            needs = {"required": [name, *then]} if isinstance(then, list) else {"required": [name]}
            present = self.read_at(needs, frozenset(("object",)), keyword, name)
            if not isinstance(then, list):
                present = self.meeting.meet(present, self.read_at(then, types, keyword, name))
            absent = Union((ObjectShape({name: NEVER}), *other_types(types, "object")))
            found = self.meeting.meet(found, join((absent, present)))
        return found

    # -- schemas that apply in place

    def _ref(self, schema: Mapping[str, Any], types: Types) -> Union:
        pointer = schema["$ref"]
        self.target(pointer)
        return Union((Reference(pointer),))

    def _parts(self, schema: Mapping[str, Any], keyword: str) -> list[Any]:
        parts = schema[keyword]
        if not isinstance(parts, list) or not parts:
            raise self.problem(keyword, "it must be a list of at least one schema")
        return parts

    def _all_of(self, schema: Mapping[str, Any], types: Types) -> Union:
        found = ANY
        for index, part in enumerate(self._parts(schema, "allOf")):
            found = self.meeting.meet(found, self.read_at(part, types, "allOf", index))
        return found

    def _any_of(self, schema: Mapping[str, Any], types: Types) -> Union:
        return join(
            self.read_at(part, types, "anyOf", index) for index, part in enumerate(self._parts(schema, "anyOf"))
        )

    def _one_of(self, schema: Mapping[str, Any], types: Types) -> Union:
        """The alternatives; a value of one must be none of another."""
        parts = self._parts(schema, "oneOf")
        own = self._own(schema, types)
        unions = [self.read_at(part, types, "oneOf", index) for index, part in enumerate(parts)]
        if len(parts) > 1:
            for index, union in enumerate(unions):
                met = self.meeting.meet(own, union)
                for other, part in enumerate(parts):
                    if other != index and not self._negation.excludes(part, met):
                        raise self.problem(
                            "oneOf", f"a value of alternative {index} can be one of {other}, too; use anyOf"
                        )
        return join(unions)

    def _not(self, schema: Mapping[str, Any], types: Types) -> Union:
        self._where.append("not")
        found = self._negation.negate(schema["not"], types)
        self._where.pop()
        if found is None:
            raise self.problem("not", "it cannot be kept")
        return without_names(found)

    def _if(self, schema: Mapping[str, Any], types: Types) -> Union:
        if "then" not in schema and "else" not in schema:
            return ANY
        self._where.append("if")
        fails = self._negation.negate(schema["if"], types)
        self._where.pop()
        if fails is None:
            raise self.problem("if", "the condition cannot be kept")
        fails = without_names(fails)
        holds = self.read_at(schema["if"], types, "if")
        if "then" in schema:
            holds = self.meeting.meet(holds, self.read_at(schema["then"], types, "then"))
        if "else" in schema:
            fails = self.meeting.meet(fails, self.read_at(schema["else"], types, "else"))
        return join((holds, fails))


# The keywords whose schemas apply to the same value.
_IN_PLACE: dict[str, Callable[[Reader, Mapping[str, Any], Types], Union]] = {
    "$ref": Reader._ref,
    "allOf": Reader._all_of,
    "anyOf": Reader._any_of,
    "oneOf": Reader._one_of,
    "not": Reader._not,
    "if": Reader._if,
    "dependentRequired": Reader._dependent_required,
    "dependentSchemas": Reader._dependent_schemas,
    "dependencies": Reader._dependencies,
}


def _applied(schema: Mapping[str, Any]) -> bool:
    """Whether other schemas apply to the same value."""
    return any(keyword in _IN_PLACE for keyword in schema)


def other_types(types: Types, *but: str) -> tuple[Shape, ...]:
    """Any value of the types that are allowed, without some."""
    return tuple(OF_TYPE[kind] for kind in (TYPES if types is None else sorted(types)) if kind not in but)


def _common_types(declared: list[str], given: frozenset[str]) -> list[str]:
    common = [name for name in declared if name in given]
    if "integer" in declared and "number" in given and "integer" not in common:
        common.append("integer")
    if "number" in declared and "integer" in given and "integer" not in common:
        common.append("integer")
    return common
