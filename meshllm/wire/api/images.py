"""Whether a request contains images, in any of the APIs.

Bounded; never raises. The engine refuses images that this overlooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Message parts that are images, in chat completions, messages and responses; last, the engine's own field beside a
# prompt.
_KINDS = frozenset(("image_url", "image", "input_image"))
_BESIDE_A_PROMPT = "multimodal_data"
PICTURE_WORDS = (b"image", _BESIDE_A_PROMPT.encode())
"""The body of every request with an image contains one of these."""
# More parts than any model's context could hold.
MAX_PARTS = 100_000


def shows_pictures(request: Mapping[str, Any]) -> bool:
    """Whether `request` (a parsed body) has an image in its messages, input, prompt or tool results."""
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
