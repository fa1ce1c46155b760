"""Whether a request shows pictures to its model, in any of the APIs.

Law: bounded, and never raises, whatever the body holds. What it overlooks is for the engine to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The parts of a message that are pictures: chat completions, messages, responses. The engine's own name for what goes
# with a bare prompt comes last.
_KINDS = frozenset(("image_url", "image", "input_image"))
_BESIDE_A_PROMPT = "multimodal_data"
PICTURE_WORDS = (b"image", _BESIDE_A_PROMPT.encode())
"""One of these stands in the body of every request that shows a picture."""
# Far more parts than a conversation has that any model could read.
MAX_PARTS = 100_000


def shows_pictures(request: Mapping[str, Any]) -> bool:
    """Whether `request` (a parsed body) has a picture in its messages, its input or its prompt, or in what a tool gave
    back."""
    todo: list[Any] = [request.get(field) for field in ("messages", "input", "prompt")]
    for _ in range(MAX_PARTS):
        if not todo:
            return False
        part = todo.pop()
        if isinstance(part, list):
            todo += part[:MAX_PARTS]
        elif isinstance(part, dict):
            kind = part.get("type")
            if (isinstance(kind, str) and kind in _KINDS) or part.get(_BESIDE_A_PROMPT):
                return True
            todo += [part.get("content"), part.get("output")]
    return False
