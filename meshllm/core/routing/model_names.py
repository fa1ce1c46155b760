"""Finds the model that a name means: an alias of the owner, the exact name, one that differs in case or `.gguf`, or one
that states its quantization besides ("m" is m.Q4_1, if the mesh has one such model only) or otherwise ("m:Q4_1"). A tag
"m:latest", which clients of Ollama add, says nothing. Pure.

The API, wishes (`--model`), demand, `mesh-llm load` and `mesh-llm drop` read names by this rule."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Final

SUFFIX = ".gguf"
LATEST = ":latest"
# Names of quantizations, as files and repositories of models state them.
QUANTIZATION: Final = (
    r"(?:UD[-_])?(?:I?Q[1-8](?:[-_][01K])?(?:[-_](?:XXS|XS|S|M|L|XL|NL))?(?:[-_][48][-_][48])?"
    r"|TQ[12][-_]0|MXFP4(?:[-_]MOE)?|NVFP4|BF16|FP?16|FP?32)"
)
_AT_END = re.compile(rf"[-._: ]({QUANTIZATION})$", re.IGNORECASE)
# A name, folded, and its quantization ("" if it states none).
_Spelling = tuple[str, str]


class ModelNames:
    """The names that can be requested at one time.

    An alias comes first: it is the owner's word, and any member can serve a model by any name. A name that differs from
    several models is no name of any; they are its `candidates`. What is only asked for comes last: it must not hide a
    model that the mesh has.
    """

    def __init__(
        self,
        names: Iterable[str],
        aliases: Mapping[str, str],
        wished: Iterable[str] = (),
        same: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: of the models that the mesh has; `aliases`: names of models by the owner's names for them; `wished`:
        names that nodes ask for, which count where they mean none of `names`; `same`: names of `names` by further names
        of the same files."""
        self._names = frozenset(names)
        self._aliases = aliases
        self._folded_aliases = {_folded(alias): model for alias, model in aliases.items()}
        self._folded: dict[str, list[str]] = {}
        self._bare: dict[str, list[str]] = {}
        self._spelled: dict[_Spelling, list[str]] = {}
        for name in self._names:
            self._folded.setdefault(_folded(name), []).append(name)
            bare, quantization = _spelling(name)
            if quantization:
                self._bare.setdefault(bare, []).append(name)
                self._spelled.setdefault((bare, quantization), []).append(name)
        known = {} if same is None else {other: name for other, name in same.items() if name in self._names}
        self._same = known
        self._others = ModelNames(known.keys() - self._names, {}) if known else None
        others = [name for name in wished if name not in self._names and not self._similar(name)]
        self._wished = ModelNames(others, {}) if others else None

    def find(self, asked: str) -> str:
        """The name of the model that `asked` means, or `asked` itself if no model is known by it."""
        name = self.meant(asked)
        if name in self._names:
            return name
        found = self._similar(name)
        if not found and self._wished is not None:
            return self._wished.find(name)
        return found[0] if len(found) == 1 else name

    def candidates(self, asked: str) -> tuple[str, ...]:
        """The models that `asked` could mean, if there are several: sorted."""
        name = self.meant(asked)
        found = [] if name in self._names else self._similar(name)
        if not found and self._wished is not None:
            return self._wished.candidates(name)
        return tuple(sorted(found)) if len(found) > 1 else ()

    def is_known(self, asked: str) -> bool:
        """Whether `asked` means a model, or what a node asks for."""
        found = self.find(asked)
        return found in self._names or (self._wished is not None and self._wished.is_known(found))

    def means(self, asked: str) -> tuple[str, ...]:
        """The models that the mesh has under the name `asked`: one, or `candidates`, or none."""
        name = self.meant(asked)
        return (name,) if name in self._names else tuple(sorted(self._similar(name)))

    @property
    def wished(self) -> tuple[str, ...]:
        """The names that are only asked for: the mesh has no model under them. Sorted."""
        return () if self._wished is None else tuple(sorted(self._wished._names))

    def meant(self, asked: str) -> str:
        """`asked`, or the name for which it is an alias."""
        alias = self._aliases.get(asked)
        if alias is None and asked not in self._names:
            alias = self._folded_aliases.get(_folded(asked))
        return asked if alias is None else alias

    def _similar(self, name: str) -> list[str]:
        if name[-len(LATEST) :].casefold() == LATEST:
            name = name[: -len(LATEST)]
            if name in self._names:
                return [name]
        folded = _folded(name)
        if found := self._folded.get(folded):
            return found
        bare, quantization = _spelling(name)
        found = self._spelled.get((bare, quantization), []) if quantization else self._bare.get(folded, [])
        if found or self._others is None:
            return found
        return list(dict.fromkeys([self._same[other] for other in self._others.means(name)]))


def means_of(
    asked: Collection[str], has: Collection[str], same: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """For each name of `asked` that is none of `has`: the models that it means there. `same`: see `ModelNames`."""
    others = set(asked).difference(has)
    if not others:
        return {}
    # A mesh has thousands of names, and a name means only such as begin with it.
    begins = tuple([_spelling(name)[0] for name in others])
    same = {} if same is None else {one: name for one, name in same.items() if one.casefold().startswith(begins)}
    near = {name for name in has if name.casefold().startswith(begins)}
    names = ModelNames((near - same.keys()) | set(same.values()), {}, same=same)
    return {name: names.means(name) for name in others}


def _folded(name: str) -> str:
    return name.casefold().removesuffix(SUFFIX)


def quantization_at_end(name: str) -> str:
    """The quantization that a model's name states at its end, in upper case; "" if it states none."""
    return _spelling(name)[1].upper()


def without_quantization(name: str) -> str:
    """A model's name, folded, without the quantization at its end."""
    return _spelling(name)[0]


# Names in use at a time: those on the disks of a large mesh.
@lru_cache(maxsize=1 << 14)
def _spelling(name: str) -> _Spelling:
    """The name without its quantization, and that, as "q4_k_m"."""
    folded = _folded(name)
    match = _AT_END.search(folded)
    return (folded, "") if match is None else (folded[: match.start()], match[1].replace("-", "_"))
