"""Conversations in the order that a model's chat template renders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What a model's chat template accepts."""


ANY_TEMPLATE = TemplateTraits()
"""Of a template that was not examined: conversations are not changed."""


def shape(messages: list[Any], traits: TemplateTraits) -> list[Any]:
    """The messages (in the shape of `/v1/chat/completions`) merged or moved so that the template renders them.

    The same list if it needs no change.
    """
    del traits
    return messages
