"""A request as an engine of this node gets it, and what must be done with its response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshllm.wire.api.response_translation import MakeTranslator, chained
from meshllm.wire.api.several_choices import SummedUsage


@dataclass(frozen=True, slots=True)
class Prepared:
    """`body`: in place of the caller's, None if it is unchanged. `path`: in place of the caller's, if not empty.

    `translator`: makes the translator of the response, if it needs one. `streamed`: the engine is asked for a stream,
    from which the whole answer is assembled.
    """

    body: Mapping[str, Any] | None = None
    path: str = ""
    translator: MakeTranslator | None = None
    streamed: bool = False


UNCHANGED = Prepared()


class Draft:
    """The fields of a body that are changed: those set here replace or extend the caller's; None removes one."""

    __slots__ = ("changes", "given")

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        # "null" means "not there" in all APIs; the engine fails on some.
        self.changes: dict[str, Any] = {}
        if None in given.values():
            self.changes = {field: None for field, value in given.items() if value is None}

    def get(self, field: str) -> Any:
        """The field's value as it is now; None if it is missing, null or removed."""
        return self.changes[field] if field in self.changes else self.given.get(field)

    def set(self, field: str, value: Any) -> None:
        """Replace a field; None removes it."""
        self.changes[field] = value

    def replace(self, field: str, value: Any) -> None:
        """Set a field, unless it has that very value."""
        if value is not self.get(field):
            self.changes[field] = value

    def body(self) -> dict[str, Any] | None:
        """The whole body; None if nothing was changed."""
        if not self.changes:
            return None
        merged = {**self.given, **self.changes}
        return {field: value for field, value in merged.items() if value is not None or field not in self.changes}

    def prepared(self, translator: MakeTranslator | None = None, *, choices: int = 1, each: int = 1) -> Prepared:
        """The request; its answer has so many `choices`, `each` of one prompt."""
        if choices > 1:
            return self._several(translator, choices, each)
        if not self.changes and translator is None:
            return UNCHANGED
        return Prepared(self.body(), "", translator)

    def _several(self, translator: MakeTranslator | None, choices: int, each: int) -> Prepared:
        """The request as a stream whose usages are summed."""
        streams = self.get("stream") is True
        if not streams:
            self.set("stream", True)
            self.set("stream_options", {"include_usage": True})
        summed = chained(translator, lambda _ident: SummedUsage(choices, each))
        return Prepared(self.body(), "", summed, streamed=not streams)
