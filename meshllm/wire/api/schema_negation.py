"""What a JSON schema does not allow: for `not`, `if` and `oneOf`. Pure.

A negation may allow less than it could (a keyword that cannot be negated adds nothing), never a value that the schema
allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshllm.wire.api.schema_shapes import (
    ANY,
    NEVER,
    OF_TYPE,
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
    join,
    number_allows,
)

if TYPE_CHECKING:
    from meshllm.wire.api.schema_reader import Reader, Types

_DEEPEST = 12
_NOTES = frozenset(
    (
        *("title", "description", "default", "examples", "$comment", "$schema", "$id", "$defs", "definitions"),
        *("deprecated", "readOnly", "writeOnly", "$anchor"),
    )
)


class Negation:
    """Negates schemas that `reader` reads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._depth = 0

    def negate(self, schema: Any, types: Types) -> Union | None:
        """Values that `schema` does not allow; None if they cannot be told."""
        self._reader.spend()
        if schema is True or schema is False:
            return NEVER if schema else ANY
        if not isinstance(schema, dict):
            raise self._reader.problem("not", "a schema must be an object, true or false")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._reader.problem("not", "it is nested too deeply")
        found = [self._keyword(keyword, schema, types) for keyword in schema if keyword not in _NOTES]
        self._depth -= 1
        told = [union for union in found if union is not None]
        return join(told) if told or not found else None

    def _keyword(self, keyword: str, schema: dict[str, Any], types: Types) -> Union | None:
        value = schema[keyword]
        if keyword == "const":
            return Union((Excluded((value,)),))
        if keyword == "enum" and isinstance(value, list):
            return Union((Excluded(tuple(value)),))
        if keyword == "type":
            return _other_types(value, types)
        if keyword == "required" and isinstance(value, list):
            return Union(tuple(ObjectShape({name: NEVER}) for name in value if isinstance(name, str)))
        if keyword == "properties" and isinstance(value, dict):
            return self._properties(value)
        if keyword == "not":
            return self._reader.read(value, types)
        if keyword == "$ref":
            return self.negate(self._reader.target(value), types)
        if keyword in ("anyOf", "allOf") and isinstance(value, list):
            return self._combined(keyword, value, types)
        if keyword in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"):
            return _lengths(keyword, value)
        return _bounds(keyword, value)

    def _properties(self, properties: dict[str, Any]) -> Union | None:
        found = []
        for name, schema in properties.items():
            negated = self.negate(schema, None)
            if negated is not None and negated.shapes:
                found.append(ObjectShape({name: negated}, (name,), unnamed=frozenset((name,))))
        return Union(tuple(found)) if found else None

    def _combined(self, keyword: str, parts: list[Any], types: Types) -> Union | None:
        negated = [self.negate(part, types) for part in parts]
        if keyword == "allOf":
            told = [union for union in negated if union is not None]
            return join(told) if told else None
        found = ANY
        for union in negated:
            if union is None:
                return None
            found = self._reader.meeting.meet(found, union)
        return found

    def excludes(self, schema: Any, union: Union) -> bool:
        """Whether surely no value of `union` is allowed by `schema`."""
        self._depth += 1
        try:
            return self._depth <= _DEEPEST and all(self._excludes(schema, shape) for shape in union.shapes)
        finally:
            self._depth -= 1

    def _excludes(self, schema: Any, shape: Shape) -> bool:
        self._reader.spend()
        if isinstance(shape, Reference):
            return self.excludes(schema, self._reader.expand(shape.pointer))
        if not isinstance(schema, dict):
            return schema is False
        if "type" in schema and self._type_excludes(schema["type"], shape):
            return True
        listed = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(listed, list) and not any(self._allows(shape, value) for value in listed):
            return True
        if "$ref" in schema and self.excludes(self._reader.target(schema["$ref"]), Union((shape,))):
            return True
        if any(self.excludes(part, Union((shape,))) for part in _list(schema.get("allOf"))):
            return True
        for keyword in ("anyOf", "oneOf"):
            parts = _list(schema.get(keyword))
            if parts and all(self.excludes(part, Union((shape,))) for part in parts):
                return True
        if isinstance(shape, ObjectShape):
            return self._members_exclude(schema, shape)
        return isinstance(shape, NumberShape) and self._number_excludes(schema, shape)

    def _allows(self, shape: Shape, value: Any) -> bool:
        try:
            return self._reader.meeting.allows(shape, value)
        except SchemaProblem:
            return True

    def _type_excludes(self, declared: Any, shape: Shape) -> bool:
        names = declared if isinstance(declared, list) else [declared]
        return not any(name in names for name in _type_names(shape))

    def _members_exclude(self, schema: dict[str, Any], shape: ObjectShape) -> bool:
        """Objects are written with the named members only, unless they have none."""
        named = {name for name, union in shape.members.items() if union.shapes}
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        if named and any(name not in named for name in required):
            return True
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            properties = {}
        if schema.get("additionalProperties") is False and any(name not in properties for name in shape.required):
            return not schema.get("patternProperties")
        return any(
            name in properties and self.excludes(properties[name], shape.members[name])
            for name in shape.required
            if name in shape.members
        )

    def _number_excludes(self, schema: dict[str, Any], shape: NumberShape) -> bool:
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            negated = _bounds(keyword, schema.get(keyword)) if keyword in schema else None
            if negated is None or not isinstance(outside := negated.shapes[0], NumberShape):
                continue
            ends = [bound for bound in (shape.low, shape.high) if bound is not None]
            if keyword in ("minimum", "exclusiveMinimum") and shape.high is not None:
                ends = [shape.high]
            elif keyword in ("maximum", "exclusiveMaximum") and shape.low is not None:
                ends = [shape.low]
            else:
                continue
            if all(number_allows(outside, end.value) for end in ends):
                return True
        return False


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_names(shape: Shape) -> tuple[str, ...]:
    """Names of types that a value of a shape may have in `type`."""
    if isinstance(shape, ObjectShape):
        return ("object",)
    if isinstance(shape, ArrayShape):
        return ("array",)
    if isinstance(shape, StringShape):
        return ("string",)
    if isinstance(shape, NumberShape):
        return ("integer", "number")
    if isinstance(shape, Constants):
        return tuple({name for value in shape.values for name in _types_of(value)})
    return tuple(OF_TYPE)


def _types_of(value: Any) -> tuple[str, ...]:
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int | float):
        return ("integer", "number") if value == int(value) else ("number",)
    return ("string",) if isinstance(value, str) else ("array",) if isinstance(value, list) else ("object",)


def _other_types(declared: Any, types: Types) -> Union:
    names = [name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)]
    kinds = ("object", "array", "string", "boolean", "null", "number")
    # What is no integer may still be a number, which the engine's grammar cannot tell apart.
    gone = {*names, "number"} if "integer" in names else set(names)
    return Union(tuple(OF_TYPE[kind] for kind in kinds if kind not in gone))


def _lengths(keyword: str, value: Any) -> Union | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    shape = {"L": StringShape, "I": ArrayShape, "P": ObjectShape}[keyword[3]]
    if keyword.startswith("min"):
        return Union((shape(most=value - 1),)) if value > 0 else NEVER
    return Union((shape(least=value + 1),))


def _bounds(keyword: str, value: Any) -> Union | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if keyword == "minimum":
        return Union((NumberShape(high=Bound(value, True, "not")),))
    if keyword == "exclusiveMinimum":
        return Union((NumberShape(high=Bound(value, False, "not")),))
    if keyword == "maximum":
        return Union((NumberShape(low=Bound(value, True, "not")),))
    if keyword == "exclusiveMaximum":
        return Union((NumberShape(low=Bound(value, False, "not")),))
    return None
