"""Finds the model that a name means: an alias of the owner, the exact name, one that differs in case or `.gguf`, or one
that states its quantization besides. Pure. The API, `mesh-llm load` and `mesh-llm drop` read names by this rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

SUFFIX = ".gguf"
# Names of quantizations, as files and repositories of models state them.
QUANTIZATION: Final = (
    r"(?:UD[-_])?(?:I?Q[1-8](?:[-_][01K])?(?:[-_](?:XXS|XS|S|M|L|XL|NL))?(?:[-_][48][-_][48])?"
    r"|TQ[12][-_]0|MXFP4(?:[-_]MOE)?|NVFP4|BF16|FP?16|FP?32)"
)
_AT_END = re.compile(rf"[-._: ]{QUANTIZATION}$", re.IGNORECASE)


class ModelNames:
    """The names that can be requested at one time.

    An alias comes first: it is the owner's word, and any member can serve a model by any name. A name that differs from
    several models is no name of any; they are its `candidates`.
    """

    def __init__(self, names: Iterable[str], aliases: Mapping[str, str]) -> None:
        """`aliases`: names of models by the owner's names for them."""
        self._names = frozenset(names)
        self._aliases = aliases
        self._folded_aliases = {_folded(alias): model for alias, model in aliases.items()}
        self._folded: dict[str, list[str]] = {}
        self._bare: dict[str, list[str]] = {}
        for name in self._names:
            folded = _folded(name)
            self._folded.setdefault(folded, []).append(name)
            if (bare := _AT_END.sub("", folded)) != folded:
                self._bare.setdefault(bare, []).append(name)

    def find(self, asked: str) -> str:
        """The name of the model that `asked` means, or `asked` itself if no model is known by it."""
        name = self.meant(asked)
        if name in self._names:
            return name
        found = self._similar(name)
        return found[0] if len(found) == 1 else name

    def candidates(self, asked: str) -> tuple[str, ...]:
        """The models that `asked` could mean, if there are several: sorted."""
        name = self.meant(asked)
        found = [] if name in self._names else self._similar(name)
        return tuple(sorted(found)) if len(found) > 1 else ()

    def is_known(self, asked: str) -> bool:
        """Whether `asked` means a model."""
        return self.find(asked) in self._names

    def meant(self, asked: str) -> str:
        """`asked`, or the name for which it is an alias."""
        alias = self._aliases.get(asked)
        if alias is None and asked not in self._names:
            alias = self._folded_aliases.get(_folded(asked))
        return asked if alias is None else alias

    def _similar(self, name: str) -> list[str]:
        folded = _folded(name)
        return self._folded.get(folded) or self._bare.get(folded, [])


def _folded(name: str) -> str:
    return name.casefold().removesuffix(SUFFIX)
