"""Writes the types that the console's page shares with the daemon: TypeScript, from the daemon's own OpenAPI document.

`--check` writes nothing and says whether the file is current. The document's schemas are a small part of JSON Schema;
what is not known here is an error, never `any`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from meshllm.web.console.openapi import document

TARGET = Path(__file__).resolve().parent.parent / "console" / "src" / "api.ts"
HEAD = """// What the daemon says, as types. Written by `scripts/console types` from its OpenAPI document; not by hand.
"""
PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def type_of(schema: dict[str, Any]) -> str:
    """The TypeScript type of `schema`. Raises ValueError for what this does not know."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(type_of(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"'{value}'" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        item = type_of(schema["items"])
        return f"({item})[]" if " " in item else f"{item}[]"
    if kind == "object" and "additionalProperties" in schema:
        return f"Record<string, {type_of(schema['additionalProperties'])}>"
    if kind in PLAIN:
        return PLAIN[kind]
    raise ValueError(f"no type for {schema}")


def comment(text: str, indent: str = "") -> str:
    """`text` as a comment over what it is about."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "".join(f"{indent}//{' ' + line if line else ''}\n" for line in lines)


def interface(name: str, schema: dict[str, Any]) -> str:
    """One schema, with its description."""
    required = set(schema.get("required", ()))
    fields = "".join(
        f"  {field}{'' if field in required else '?'}: {type_of(facts)}\n"
        for field, facts in schema["properties"].items()
    )
    return f"\n{comment(schema.get('description', ''))}export interface {name} {{\n{fields}}}\n"


def written() -> str:
    """The whole file."""
    schemas = document()["components"]["schemas"]
    return HEAD + "".join(interface(name, schemas[name]) for name in sorted(schemas))


def main() -> int:
    """Writes the file, or checks it."""
    text = written()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") != text:
            print("console/src/api.ts is not what the daemon says: run scripts/console types", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
