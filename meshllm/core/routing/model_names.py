"""Finds the model that a caller's name means: an alias of the owner, the exact name, or one that differs in case or
`.gguf`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SUFFIX = ".gguf"


class ModelNames:
    """The names that can be requested at one time.

    An alias comes first: it is the owner's word, and any member can serve a model by any name. A name that differs from
    several models is no name of any.
    """

    def __init__(self, names: Iterable[str], aliases: Mapping[str, str]) -> None:
        """`aliases`: names of models by the owner's names for them."""
        self._names = frozenset(names)
        self._aliases = aliases
        self._folded_aliases = {_folded(alias): model for alias, model in aliases.items()}
        self._folded: dict[str, str | None] = {}
        for name in self._names:
            key = _folded(name)
            self._folded[key] = None if key in self._folded else name

    def find(self, asked: str) -> str:
        """The name of the model that `asked` means, or `asked` itself if no model is known by it."""
        alias = self._aliases.get(asked)
        if alias is None and asked not in self._names:
            alias = self._folded_aliases.get(_folded(asked))
        name = asked if alias is None else alias
        return name if name in self._names else self._folded.get(_folded(name)) or name


def _folded(name: str) -> str:
    return name.casefold().removesuffix(SUFFIX)
