"""The schemas of tools, as the engine's grammar takes them. Pure; bounded.

The model reads a tool's schema, so it keeps its form and its words. Changed is only what would fail the request or make
the grammar wrong. Loosened, because one tool must not fail the whole list:

- a reference to itself or to another document: any JSON there; other references are written out
- `anyOf` or `oneOf` beside `properties`: their members are optional members; which go together is not kept
- `allOf`: one object with all members
- names beside `properties` (`additionalProperties`): not offered
- a pattern that has no grammar: any string, the pattern in the description
- types and bounds that are none of JSON Schema: left out
- `not`, `if`, `contains`, `uniqueItems`, bounds of numbers with fractions and the like: read by the model only

Refused (`problem_of`), as OpenAI does: parameters that are no object, and references to what is not in the schema.
"""

from __future__ import annotations

import json
import re
from typing import Any

from meshllm.wire.api import schema_patterns
from meshllm.wire.api.refusal import ToolSchemaProblem
from meshllm.wire.api.schema_patterns import PatternProblem
from meshllm.wire.api.schema_reader import Reader
from meshllm.wire.api.schema_shapes import OF_TYPE, SchemaProblem

# Parts of one tool once references are written out.
_MOST_PARTS = 4000
_DEEPEST = 24
_LARGEST = (1 << 53) - 1
_MOST_PATTERN = 200
# Names of types in schemas written by hand.
_TYPE_NAMES = {"int": "integer", "float": "number", "double": "number", "str": "string", "bool": "boolean"}
_TYPE_NAMES |= {"dict": "object", "list": "array", "none": "null"}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# A pattern that the engine reads as it is meant, and that matches no quote, backslash or control character.
_CLASS = r"\[(?:[A-Za-z0-9_.]|[A-Z]-[A-Z]|[a-z]-[a-z]|[0-9]-[0-9])+-?\]"
_PLAIN = re.compile(rf"\^(?:(?:{_CLASS}|[A-Za-z0-9_ -])(?:[*+?]|\{{\d+(?:,\d+)?\}})?)*\$")
# Values, not schemas: a `$ref` in them is no reference.
_DATA = frozenset(("const", "default", "enum", "example", "examples"))
_MOST_SHOWN = 80
_NOTES = ("title", "description", "default", "examples")


def loosened(schema: Any) -> dict[str, Any]:
    """The parameters of a tool: `schema` itself if the engine takes it as it is."""
    if not isinstance(schema, dict) or not schema:
        return {"type": "object", "properties": {}}
    fitted = _Fitting(schema).parameters()
    return schema if fitted == schema else fitted


def problem_of(schema: Any) -> ToolSchemaProblem | None:
    """Why a tool with these parameters is refused; None if it is not."""
    if not isinstance(schema, dict):
        return None
    declared = schema.get("type")
    if declared is not None:
        names = declared if isinstance(declared, list) else [declared]
        if "object" not in map(_type_name, names):
            return ToolSchemaProblem(".type", f"is {_shown(declared)}; the parameters of a tool must be an 'object'")
    if not isinstance(schema.get("properties"), dict | None):
        return ToolSchemaProblem(".properties", "must be an object of schemas")
    return _dangling(schema)


def _shown(value: Any) -> str:
    return f"'{value[:_MOST_SHOWN]}'" if isinstance(value, str) else json.dumps(value)[:_MOST_SHOWN]


def _dangling(root: dict[str, Any]) -> ToolSchemaProblem | None:
    """The first reference into the schema whose target is not there."""
    reader = Reader(root)
    todo: list[tuple[Any, str]] = [(root, "")]
    for part, path in todo:  # grows; bounded like the body
        if isinstance(part, list):
            todo += [(item, f"{path}[{index}]") for index, item in enumerate(part) if isinstance(item, dict | list)]
            continue
        pointer = part.get("$ref")
        if isinstance(pointer, str) and pointer.startswith("#"):
            try:
                reader.target(pointer)
            except SchemaProblem:
                return ToolSchemaProblem(f"{path}.$ref", f"is {_shown(pointer)}, which is not in the schema")
        todo += [
            (value, f"{path}.{key[:_MOST_SHOWN]}")
            for key, value in part.items()
            if isinstance(value, dict | list) and key not in _DATA
        ]
    return None


class _Fitting:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._reader = Reader(root)
        self._parts = 0
        self._open: list[str] = []

    def parameters(self) -> dict[str, Any]:
        fitted = self._fit(self._root, 0) or {}
        for keyword in ("anyOf", "oneOf"):
            if keyword in fitted:
                fitted = _merged_alternatives(fitted, keyword)
        return {**fitted, "type": "object"} if fitted.get("type") != "object" else fitted

    def _fit(self, schema: Any, depth: int) -> dict[str, Any] | None:
        """The schema with all within; None: no value is allowed."""
        self._parts += 1
        if schema is False:
            return None
        if not isinstance(schema, dict) or depth > _DEEPEST or self._parts > _MOST_PARTS:
            return {}
        if "$ref" in schema:
            return self._referred(schema, depth)
        fitted = {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
        _fit_type(fitted)
        for keywords, fit in _FITS:
            if not keywords.isdisjoint(fitted):
                fit(fitted)
        for keywords, fit_within in _FITS_WITHIN:
            if not keywords.isdisjoint(fitted):
                fit_within(self, fitted, depth)
        _close(fitted)
        return fitted

    def _referred(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """The target with the words of the reference; any JSON if it contains itself or is not there."""
        words = {key: schema[key] for key in _NOTES if key in schema}
        pointer = schema["$ref"]
        target: Any = {}
        if isinstance(pointer, str) and pointer not in self._open and pointer != "#":
            try:
                target = self._reader.target(pointer)
            except SchemaProblem:
                target = {}
        self._open.append(str(pointer))
        fitted = self._fit(target, depth + 1)
        self._open.pop()
        return {**(fitted or {}), **words}

    def _fit_array(self, fitted: dict[str, Any], depth: int) -> None:
        places = fitted.get("prefixItems")
        if isinstance(places, list) and places:
            fitted["prefixItems"] = [self._fit(place, depth + 1) or {} for place in places]
            fitted.pop("items", None)  # the engine would read this one for all places
            return
        fitted.pop("prefixItems", None)
        if "items" not in fitted:
            return
        items = fitted["items"]
        if isinstance(items, list) and items:
            fitted["items"] = [self._fit(place, depth + 1) or {} for place in items]
        else:
            fitted["items"] = self._fit(items, depth + 1) or {}

    def _fit_object(self, fitted: dict[str, Any], depth: int) -> None:
        if "properties" in fitted:
            properties = fitted["properties"] if isinstance(fitted["properties"], dict) else {}
            members = {name: self._fit(member, depth + 1) for name, member in properties.items()}
            fitted["properties"] = {name: member for name, member in members.items() if member is not None}
        if isinstance(fitted.get("additionalProperties"), dict):
            fitted["additionalProperties"] = self._fit(fitted["additionalProperties"], depth + 1) or {}
        elif "additionalProperties" in fitted and not isinstance(fitted["additionalProperties"], bool):
            del fitted["additionalProperties"]
        required = fitted.get("required")
        if required is not None or "required" in fitted:
            names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
            fitted["required"] = names
            if not names and required != []:
                del fitted["required"]

    def _fit_alternatives(self, fitted: dict[str, Any], depth: int) -> None:
        for keyword in ("oneOf", "anyOf"):
            if keyword not in fitted:
                continue
            given = fitted[keyword] if isinstance(fitted[keyword], list) else []
            parts = [part for part in (self._fit(part, depth + 1) for part in given) if part is not None]
            if not parts:
                del fitted[keyword]
                continue
            fitted[keyword] = [_typed(part, fitted) for part in parts]
            if "properties" in fitted:
                merged = _merged_alternatives(fitted, keyword)
                fitted.clear()
                fitted.update(merged)
        if "oneOf" in fitted and "anyOf" in fitted:
            del fitted["anyOf"]

    def _fit_all_of(self, fitted: dict[str, Any], depth: int) -> None:
        if "allOf" not in fitted:
            return
        parts = fitted.pop("allOf")
        for part in parts if isinstance(parts, list) else []:
            found = self._fit(part, depth + 1) or {}
            if "properties" in found:
                fitted["properties"] = {**found["properties"], **fitted.get("properties", {})}
            if "required" in found:
                fitted["required"] = list(dict.fromkeys((*fitted.get("required", []), *found["required"])))
            for key, value in found.items():
                fitted.setdefault(key, value)
        for keyword in ("oneOf", "anyOf"):
            if keyword in fitted and "properties" in fitted:
                merged = _merged_alternatives(fitted, keyword)
                fitted.clear()
                fitted.update(merged)


def _fit_type(fitted: dict[str, Any]) -> None:
    if "enum" in fitted and (not isinstance(fitted["enum"], list) or not fitted["enum"]):
        del fitted["enum"]
    if "type" not in fitted:
        return
    declared = fitted["type"]
    names = declared if isinstance(declared, list) else [declared]
    known = [name for name in map(_type_name, names) if name is not None]
    if len(known) < len(names) or not known:
        del fitted["type"]  # an unknown type allows what it likes
    elif known != names:
        fitted["type"] = known if isinstance(declared, list) else known[0]


def _type_name(name: Any) -> str | None:
    if not isinstance(name, str):
        return None
    name = _TYPE_NAMES.get(name.lower(), name.lower())
    return name if name in OF_TYPE else None


def _fit_text(fitted: dict[str, Any]) -> None:
    if "format" in fitted and not isinstance(fitted["format"], str):
        del fitted["format"]
    for key in _COUNTS:
        count = fitted.get(key, 0)
        if isinstance(count, float) and count.is_integer():
            count = fitted[key] = int(count)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 31:
            del fitted[key]
    if "pattern" not in fitted:
        return
    pattern = fitted["pattern"]
    if not isinstance(pattern, str):
        del fitted["pattern"]
        return
    if _PLAIN.fullmatch(pattern):
        return
    del fitted["pattern"]
    try:
        written = schema_patterns.write(schema_patterns.parse(pattern))
    except PatternProblem:
        written = ""
    if written and len(written) <= _MOST_PATTERN:
        fitted["pattern"] = written
    words = fitted.get("description")
    note = f"Pattern: {pattern}"
    fitted["description"] = f"{words} ({note})" if isinstance(words, str) and words else note


def _fit_numbers(fitted: dict[str, Any]) -> None:
    for key in _BOUNDS:
        bound = fitted.get(key, 0)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) <= _LARGEST:
            del fitted[key]
    highest = fitted.get("maximum", fitted.get("exclusiveMaximum", 0))
    if fitted.get("type") == "integer" and highest < 0 and not {"minimum", "exclusiveMinimum"} & fitted.keys():
        fitted["minimum"] = -_LARGEST  # without it the engine allows leading zeros


_FITS = (
    (frozenset(("pattern", "format", *_COUNTS)), _fit_text),
    (frozenset(_BOUNDS), _fit_numbers),
)
_FITS_WITHIN = (
    (frozenset(("items", "prefixItems")), _Fitting._fit_array),
    (frozenset(("properties", "additionalProperties", "required")), _Fitting._fit_object),
    (frozenset(("anyOf", "oneOf")), _Fitting._fit_alternatives),
    (frozenset(("allOf",)), _Fitting._fit_all_of),
)


def _typed(part: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """An alternative with the type that stands beside the list, which the engine does not read."""
    structural = ("type", "properties", "items", "enum", "const", "anyOf", "oneOf", "pattern")
    if "type" not in beside or any(key in part for key in structural):
        return part
    return {"type": beside["type"], **part}


def _merged_alternatives(fitted: dict[str, Any], keyword: str) -> dict[str, Any]:
    """One object with the members of all alternatives; required is what each of them requires."""
    parts = [part for part in fitted[keyword] if isinstance(part, dict)]
    merged = {key: value for key, value in fitted.items() if key != keyword}
    properties = dict(merged.get("properties", {}))
    for part in parts:
        members = part.get("properties")
        for name, member in members.items() if isinstance(members, dict) else ():
            properties.setdefault(name, member)
    if properties:
        merged["properties"] = properties
    common = [name for name in parts[0].get("required", []) if all(name in part.get("required", []) for part in parts)]
    if common:
        merged["required"] = list(dict.fromkeys((*merged.get("required", []), *common)))
    return merged


def _close(fitted: dict[str, Any]) -> None:
    """Required names are members; names beside members are not offered: the grammar allows broken ones."""
    properties = fitted.get("properties")
    if not isinstance(properties, dict):
        return
    for name in fitted.get("required", []):
        properties.setdefault(name, {})
    if properties and fitted.get("additionalProperties") not in (None, False):
        del fitted["additionalProperties"]
