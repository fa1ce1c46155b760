"""The models that are known by name, as data in `catalog.toml`.

Law: the data file is checked whole when it is read; an entry that contradicts itself or another one is our fault, and
the error names it. A model is its files, with their sizes and sha256, or a question to the hub; it is never a path.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from meshllm.core.snapshot import Purpose
from meshllm.errors import InternalError, UsageError
from meshllm.models.hub.manifest import HubReference, HubSource, ModelFile, PackageSource, Source

from .entry import CacheLayers, CatalogEntry
from .names import part_of, quantization

MOST_TOKENS: Final = 1 << 24  # of context; more than any model knows of
MOST_LAYERS: Final = 1 << 12
# Of a file to a parameter. Under one and over 32 (numbers of single precision) something was mistyped.
LEAST_BITS, MOST_BITS = 1, 33

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*")
_MEMBER = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)

_MODEL_FIELDS = {
    "name", "architecture", "parameters", "active_parameters", "quantization", "context_length", "license",
    "chat_template", "purpose", "tools", "vision", "draft", "aliases", "cache", "file", "hub",
}  # fmt: skip
_REFERENCE_FIELDS = {"repository", "revision", "path", "sha256", "projector", "size", "approximate"}
_PINNED_FIELDS = {"repository", "revision", "files", "projector"}
_CACHE_FIELDS = {"layers", "heads", "key", "value", "window"}


class Catalog:
    """The entries, in the order of the data file."""

    def __init__(self, entries: tuple[CatalogEntry, ...]) -> None:
        self.entries = entries
        self._by_name: dict[str, CatalogEntry] = {}
        for entry in entries:
            for name in (entry.name, *entry.aliases):
                if (other := self._by_name.get(name.casefold())) is not None:
                    raise InternalError(
                        f"The catalogue has two models of the same name: {name} is {other.name} already."
                    )
                self._by_name[name.casefold()] = entry

    def get(self, name: str) -> CatalogEntry | None:
        """The entry of that name, or with that alias, whatever the case of its letters."""
        return self._by_name.get(name.casefold())

    def with_digest(self, sha256: str) -> CatalogEntry | None:
        """The entry whose first file has this sha256."""
        return next((entry for entry in self.entries if entry.sha256 == sha256), None)


@cache
def load() -> Catalog:
    """The catalogue that comes with the program."""
    return parse(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))


def parse(text: str) -> Catalog:
    """A catalogue from TOML. Raises InternalError that names the entry and field which is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InternalError(f"The catalogue is not TOML: {error}.") from error
    _only(data, {"model"}, "the catalogue")
    catalog = Catalog(tuple(_entry(item) for item in _list(data, "model", "the catalogue")))
    files: dict[str, str] = {}
    for entry in catalog.entries:
        _check_draft(entry, catalog)
        for file in (*entry.files, *([entry.projector] if entry.projector else [])):
            if files.setdefault(file.name.casefold(), file.sha256) != file.sha256:
                raise InternalError(f"The catalogue's {entry.name} has a file {file.name}, as another model has.")
    return catalog


def _check_draft(entry: CatalogEntry, catalog: Catalog) -> None:
    if entry.draft is None:
        return
    draft = catalog.get(entry.draft)
    if draft is None or draft.name != entry.draft:
        raise InternalError(f"The catalogue has no {entry.draft}, which is to be the draft of {entry.name}.")
    if draft.purpose is not Purpose.GENERATE or entry.purpose is not Purpose.GENERATE:
        raise InternalError(f"The catalogue's draft of {entry.name} is {draft.name}: one of them writes no text.")
    if draft.parameters >= entry.parameters or draft.size >= entry.size:
        raise InternalError(f"The catalogue's draft of {entry.name} is {draft.name}, which is no smaller.")


# -- one entry


def _entry(data: dict[str, Any]) -> CatalogEntry:
    name = _text(data, "name", "a model", _NAME.fullmatch)
    _only(data, _MODEL_FIELDS, name)
    parameters = _count(data, "parameters", name)
    active = _count(data, "active_parameters", name, most=parameters) if "active_parameters" in data else parameters
    chosen = _text(data, "quantization", name, _is_quantization)
    purpose = _purpose(data, name)
    if ("file" in data) == ("hub" in data):
        raise InternalError(f"The catalogue's {name} has to have either a file or a place at the hub.")
    files: tuple[ModelFile, ...] = ()
    projector, hub, listed, approximate = None, None, 0, False
    if "file" in data:
        files = tuple(_file(item, name) for item in _list(data, "file", name))
    elif "files" in (place := _table(data, "hub", name)):
        files, projector = _pinned(place, name)
    else:
        hub, listed, approximate = _reference(place, name, chosen)
    entry = CatalogEntry(
        name=name,
        architecture=_text(data, "architecture", name, _NAME.fullmatch),
        parameters=parameters,
        active_parameters=active,
        quantization=chosen,
        context_length=_count(data, "context_length", name, most=MOST_TOKENS),
        license=_text(data, "license", name),
        chat_template=_text(data, "chat_template", name, _NAME.fullmatch) if "chat_template" in data else None,
        files=files,
        projector=projector,
        hub=hub,
        listed_size=listed,
        approximate=approximate,
        cache=tuple(_cache(item, name) for item in _list(data, "cache", name)) if "cache" in data else (),
        purpose=purpose,
        tools=_flag(data, "tools", name),
        draft=_text(data, "draft", name, _NAME.fullmatch) if "draft" in data else None,
        aliases=_aliases(data, name),
    )
    _check(entry, sees=_flag(data, "vision", name))
    return entry


def _check(entry: CatalogEntry, *, sees: bool) -> None:
    """What the fields of an entry say of each other."""
    name = entry.name
    if sees != entry.vision:
        raise InternalError(
            f"The catalogue's vision of {name} and its projector go together, and one of them is missing."
        )
    if not LEAST_BITS <= 8 * entry.size / entry.parameters <= MOST_BITS:
        raise InternalError(
            f"The catalogue's size of {name} cannot be {entry.size} bytes at {entry.parameters} parameters."
        )
    writes = entry.purpose is Purpose.GENERATE
    if writes and not entry.cache:
        raise InternalError(f"The catalogue does not say what the cache of {name} takes.")
    if not writes and (entry.tools or entry.vision):
        raise InternalError(f"The catalogue's tools and vision of {name} mean nothing: it writes no text.")
    parts = [part_of(file.name) for file in entry.files]
    if len(parts) > 1 and [part and (part.number, part.parts) for part in parts] != [
        (number + 1, len(parts)) for number in range(len(parts))
    ]:
        raise InternalError(f"The catalogue's files of {name} are not the parts of one model, in their order.")


def _purpose(data: Mapping[str, Any], model: str) -> Purpose:
    value = data.get("purpose", Purpose.GENERATE.value)
    try:
        return Purpose(value)
    except ValueError:
        raise InternalError(f"The catalogue's purpose of {model} cannot be {value!r}.") from None


def _cache(data: dict[str, Any], model: str) -> CacheLayers:
    _only(data, _CACHE_FIELDS, f"the cache of {model}")
    return CacheLayers(
        layers=_count(data, "layers", model, most=MOST_LAYERS),
        heads=_count(data, "heads", model, most=MOST_LAYERS),
        key_length=_count(data, "key", model, most=MOST_LAYERS),
        value_length=_count(data, "value", model, most=MOST_LAYERS) if data.get("value") != 0 else 0,
        window=_count(data, "window", model, most=MOST_TOKENS) if "window" in data else 0,
    )


def _aliases(data: Mapping[str, Any], model: str) -> tuple[str, ...]:
    items = data.get("aliases", [])
    if not isinstance(items, list) or not all(isinstance(item, str) and _ALIAS.fullmatch(item) for item in items):
        raise InternalError(f"The catalogue's aliases of {model} cannot be {items!r}.")
    return tuple(items)


def _is_quantization(text: str) -> bool:
    try:
        return quantization(text) == text
    except UsageError:
        return False


# -- where its files are


def _reference(place: dict[str, Any], model: str, chosen: str) -> tuple[HubReference, int, bool]:
    """A model whose files the hub has to list: the question, and the bytes it is expected to have."""
    _only(place, _REFERENCE_FIELDS, f"the place of {model} at the hub")
    path = _text(place, "path", model, _is_first_file) if "path" in place else ""
    reference = HubReference(
        name=model,
        repository=_text(place, "repository", model, _REPOSITORY.fullmatch),
        path=path,
        quantization="" if path else chosen,
        revision=_text(place, "revision", model, _REVISION.fullmatch) if "revision" in place else "main",
        sha256=_text(place, "sha256", model, _SHA256.fullmatch) if "sha256" in place else "",
        projector=_text(place, "projector", model, _is_gguf) if "projector" in place else "",
    )
    return reference, _count(place, "size", model), _flag(place, "approximate", model)


def _pinned(place: dict[str, Any], model: str) -> tuple[tuple[ModelFile, ...], ModelFile | None]:
    """A model whose files are known, at one commit of a repository."""
    _only(place, _PINNED_FIELDS, f"the place of {model} at the hub")
    repository = _text(place, "repository", model, _REPOSITORY.fullmatch)
    revision = _text(place, "revision", model, _REVISION.fullmatch)

    def file(data: dict[str, Any], name: str = "") -> ModelFile:
        _only(data, {"path", "size", "sha256"}, f"a file of {model}")
        path = _text(data, "path", model, _is_gguf)
        return ModelFile(
            name=name or path.rpartition("/")[2],
            size=_count(data, "size", model),
            sha256=_text(data, "sha256", model, _SHA256.fullmatch),
            sources=(HubSource(repository, revision, path),),
        )

    files = tuple(file(item) for item in _list(place, "files", model))
    if "projector" not in place:
        return files, None
    # Half the world's projectors are called mmproj-F16.gguf: in the store they go by their model.
    return files, file(_table(place, "projector", model), f"mmproj-{model}.gguf")


def _is_gguf(path: str) -> bool:
    return bool(_MEMBER.fullmatch(path)) and path.endswith(".gguf")


def _is_first_file(path: str) -> bool:
    part = part_of(path.rpartition("/")[2])
    return _is_gguf(path) and (part is None or part.number == 1)


def _file(data: dict[str, Any], model: str) -> ModelFile:
    _only(data, {"name", "size", "sha256", "source"}, model)
    name = _text(data, "name", model, _NAME.fullmatch)
    if not name.endswith(".gguf"):
        raise InternalError(f"The catalogue's file {name} of {model} is not called .gguf.")
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
    raise InternalError(f"The catalogue's {model} has a source of unknown kind {kind!r}.")


# -- one field


def _only(data: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise InternalError(f"The catalogue says {', '.join(unknown)} of {where}, which means nothing here.")


def _list(data: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise InternalError(f"The catalogue gives no {key} of {where}.")
    return items


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    item = data.get(key)
    if not isinstance(item, dict):
        raise InternalError(f"The catalogue's {key} of {where} cannot be {item!r}.")
    return item


def _text(data: Mapping[str, Any], key: str, where: str, accepts: Callable[[str], object] = bool) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not accepts(value):
        raise InternalError(f"The catalogue's {key} of {where} cannot be {value!r}.")
    return value


def _count(data: Mapping[str, Any], key: str, where: str, *, most: int = 1 << 60) -> int:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise InternalError(f"The catalogue's {key} of {where} cannot be {value!r}.")
    return value


def _flag(data: Mapping[str, Any], key: str, where: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise InternalError(f"The catalogue's {key} of {where} cannot be {value!r}.")
    return value
