"""A request as an engine of this node gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """`body`: in place of the caller's, None if it is unchanged."""

    body: Mapping[str, Any] | None = None


UNCHANGED = Prepared()


class Draft:
    """The fields of a body that are changed: those set here replace or extend the caller's; None removes one."""

    __slots__ = ("changes", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.changes: dict[str, Any] = {}

    def get(self, field: str) -> Any:
        """The field's value as it is now; None if it is missing, null or removed."""
        return self.changes[field] if field in self.changes else self.given.get(field)

    def set(self, field: str, value: Any) -> None:
        """Replace a field; None removes it."""
        self.changes[field] = value

    def remove(self, *fields: str) -> None:
        """Remove fields that are there."""
        for field in fields:
            if field in self.given:
                self.changes[field] = None
            else:
                self.changes.pop(field, None)

    def body(self) -> dict[str, Any] | None:
        """The whole body; None if nothing was changed."""
        if not self.changes:
            return None
        merged = {**self.given, **self.changes}
        return {field: value for field, value in merged.items() if value is not None or field not in self.changes}
