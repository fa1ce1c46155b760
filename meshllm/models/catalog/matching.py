"""Finds the known model that an inexact name means.

Words decide, not edit distances: a model matches if all words of the query belong to it. The strictest reading with one
match wins; several matches are an error that lists them; none is an error with suggestions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from meshllm.errors import AmbiguousModel, UnknownModel

from .entry import CatalogEntry, Wanted
from .names import model_name, quantization_in

MOST_CANDIDATES: Final = 10
MOST_SUGGESTIONS: Final = 3
MOST_LETTERS: Final = 200  # of a query; longer names do not exist and comparing them is slow
SIMILAR: Final = 0.6  # smallest similarity for a suggestion
MISSPELT: Final = 0.8  # similarity of words: one wrong letter in five
MOST_MISSPELT: Final = 3  # most misspelt words in a query

# Sizes stay one word ("8b", "0.6b", "a3b", "8x7b", "e4b", "16e"); "qwen3" is two, as is "llama3.2".
_WORD = re.compile(
    r"\d+x\d+b(?![a-z0-9])|[ae]\d+(?:\.\d+)?b(?![a-z0-9])|\d+(?:\.\d+)*[bkme](?![a-z0-9])|\d+(?:\.\d+)*|[a-z]+"
)
_FILLERS = frozenset({"gguf", "latest", "model"})  # words without meaning for the match


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be named: `name`, and `others` that it is also known by.

    `quantization`: its own, "" if its name has to state it.
    """

    name: str
    wanted: Wanted
    others: tuple[str, ...] = ()
    quantization: str = ""


def known_models(entries: Iterable[CatalogEntry], disk: Mapping[str, Wanted]) -> list[KnownModel]:
    """All models that can be named: the catalogue first, then those only on disk."""
    catalogue = [_of_catalogue(entry) for entry in entries]
    taken = {name.casefold() for known in catalogue for name in (known.name, *known.others)}
    return catalogue + [KnownModel(name, wanted) for name, wanted in disk.items() if name.casefold() not in taken]


def match(text: str, models: list[KnownModel]) -> KnownModel:
    """The model that `text` means. Raises AmbiguousModel and UnknownModel."""
    if len(text) > MOST_LETTERS:
        raise UnknownModel("The model name is too long.", advice="`mesh-llm download` lists the known models.")
    query = _Query(text)
    readings: tuple[Callable[[_Name], bool], ...] = (
        lambda name: name.folded == query.name.folded,
        lambda name: name.letters == query.name.letters and bool(name.letters),
        lambda name: name.words == query.name.words and bool(name.words) and query.allows(name),
        lambda name: bool(query.name.words) and query.name.words <= name.words and query.allows(name),
    )
    names = [(model, [_Name(name, model.quantization) for name in (model.name, *model.others)]) for model in models]
    for fits in readings:
        found = [model for model, spellings in names if any(fits(name) for name in spellings)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _several(text, found)
    raise _none(text, query, [(model, spellings[0]) for model, spellings in names])


class _Name:
    """A name, split for comparison."""

    def __init__(self, name: str, quantization: str = "") -> None:
        said, rest = quantization_in(name)
        self.folded = name.casefold()
        self.letters = re.sub(r"[^a-z0-9]", "", self.folded)
        words = [word for word in _WORD.findall(rest.casefold()) if word not in _FILLERS]
        self.words = Counter(words)
        # The version in the family: the 3 of "Qwen3-8B". Another number, or none ("SmolLM-135M"), is another model.
        number = next((word for word in words if word[0].isdigit()), "")
        self.version = number if number.replace(".", "").isdigit() else ""
        self.quantization = said or quantization


class _Query:
    """A query."""

    def __init__(self, text: str) -> None:
        self.name = _Name(model_name(f"{text.strip()}.gguf"))
        words = list(self.name.words)
        self._exact = any(word.isalpha() for word in words) and not all(word.isalpha() for word in words)

    def allows(self, name: _Name) -> bool:
        """True if the query is unambiguous: a size implies a version, and a stated quantization must match."""
        versions = not self._exact or not name.version or name.version in self.name.words
        return versions and self.name.quantization in ("", name.quantization)


def _of_catalogue(entry: CatalogEntry) -> KnownModel:
    file = (model_name(entry.file_name),) if entry.file_name else ()
    others = (*entry.aliases, *file, f"{entry.name}-{entry.quantization}")
    return KnownModel(entry.name, entry, others, entry.quantization)


def _several(text: str, found: list[KnownModel]) -> AmbiguousModel:
    names = tuple(model.name for model in found[:MOST_CANDIDATES])
    more = f" and {len(found) - len(names)} more" if len(found) > len(names) else ""
    return AmbiguousModel(
        f"{text!r} can mean {', '.join(names)}{more}.", advice="Use one of these names.", candidates=names
    )


def _none(text: str, query: _Query, names: list[tuple[KnownModel, _Name]]) -> UnknownModel:
    asked = query.name
    if asked.quantization and asked.words:
        for model, name in names:
            if name.words == asked.words and isinstance(model.wanted, CatalogEntry):
                return UnknownModel(
                    f"{model.name} is in the catalogue as {name.quantization}, not as {asked.quantization}.",
                    advice=f"Use {model.name} as it is, or download another from the hub: "
                    f"{model.wanted.repository or 'org/repo'}:{asked.quantization}.",
                )
    ranked = sorted(names, key=lambda item: -_likeness(asked, item[1]))
    close = [model.name for model, name in ranked[:MOST_SUGGESTIONS] if _likeness(asked, name) > 0]
    return UnknownModel(
        f"No model is called {text!r}.",
        advice=f"Did you mean {' or '.join(close)}?" if close else "`mesh-llm download` lists the known models.",
    )


def _likeness(asked: _Name, name: _Name) -> float:
    """Similarity for suggestions: 0 if there is none."""
    common = _weight(asked.words & name.words)
    similar = _similarity(asked.letters, name.letters)
    if _is_misspelt(asked, name):
        return 1.0 + common + similar
    return common + similar if 0 < _weight(asked.words) <= 2 * common or similar >= SIMILAR else 0.0


def _similarity(one: str, other: str) -> float:
    from difflib import SequenceMatcher  # needed for unknown names only

    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _is_misspelt(asked: _Name, name: _Name) -> bool:
    """Whether the query matches except for a letter or two ("mistrl", "smolm2")."""
    said = asked.words - name.words
    if not 0 < len(said) <= MOST_MISSPELT or not all(len(word) > 3 and word.isalpha() for word in said):
        return False
    return all(any(_similarity(word, other) >= MISSPELT for other in name.words) for word in said)


def _weight(words: Counter[str]) -> float:
    """Words identify a model; numbers and single letters are shared by many."""
    return sum(count * (1.0 if len(word) > 2 and word.isalpha() else 0.25) for word, count in words.items())
