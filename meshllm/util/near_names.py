"""Hints for a name that is not known: the known names that it seems to mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_WORDS = re.compile(r"[a-z]+|[0-9]+")
# Letters of an unknown name that are compared: longer names do not exist, and comparing them is slow.
MAX_COMPARED: Final = 200
# What clients of Ollama add, and says nothing.
_LATEST = ":latest"


def near_names(asked: str, names: Collection[str], most: int = 3) -> list[str]:
    """The `names` that `asked` seems to mean: those with all of its words and numbers ("smollm2:135m" in
    SmolLM2-135M-Instruct), or else those spelt like it, the most similar first."""
    import difflib  # needed for unknown names only

    asked = asked[:MAX_COMPARED].casefold().removesuffix(_LATEST)
    words = set(_WORDS.findall(asked))
    holding = [name for name in names if words and words <= set(_WORDS.findall(name.casefold()))]
    folded = {name.casefold(): name for name in holding or names}
    close = difflib.get_close_matches(asked, folded, n=most, cutoff=0.0 if holding else 0.5)
    return [folded[name] for name in close]
