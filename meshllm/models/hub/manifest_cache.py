"""Manifests of models that were found at the hub, kept so that the same name works without it.

Law: what is read back is checked like an answer from a stranger; a file that is damaged counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from meshllm.models.library.digest_index import SHA256
from meshllm.util.atomic_file import replace_file

from .manifest import HubReference, HubSource, Manifest, ModelFile, PackageSource, Source

MAX_KEPT_BYTES: Final = 1 << 20
MAX_KEPT: Final = 1024
MAX_FILES: Final = 1000  # parts of one model; names have room for 99999, the largest models have some 200
MAX_FILE_BYTES: Final = 1 << 42
MAX_NAME: Final = 255

_VERSION: Final = 1
_COMPONENT = re.compile(r"\w[\w.+,=@()\[\] -]{0,199}", re.ASCII)  # as `names.py` takes them
_PLAIN = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_file_name(name: str) -> bool:
    """Whether a file from elsewhere may have that name in a folder of ours."""
    return bool(_COMPONENT.fullmatch(name)) and ".." not in name and name.casefold().endswith(".gguf")


def is_repository_path(path: str) -> bool:
    """Whether that can be the path of a file in a repository: no step leaves it, nothing odd is in it."""
    steps = path.split("/")
    return len(steps) <= 8 and all(_COMPONENT.fullmatch(step) and ".." not in step for step in steps)


def is_repository(name: str) -> bool:
    """Whether that can be a repository of the hub ("organisation/name")."""
    return bool(_REPOSITORY.fullmatch(name)) and ".." not in name


class ManifestCache:
    """The kept manifests, as files in `folder`, each with the question that it answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: tuple[int, list[tuple[object, Manifest]]] = (-1, [])

    def answer(self, question: HubReference) -> Manifest | None:
        """What was found for this question before."""
        asked = _question(question)
        found = next((manifest for known, manifest in self._all() if known == asked), None)
        return replace(found, name=question.name) if found else None

    def manifests(self) -> list[Manifest]:
        """All that are kept, in the order of their names."""
        return sorted((manifest for _, manifest in self._all()), key=lambda manifest: manifest.name)

    def keep(self, manifest: Manifest, question: HubReference | None = None) -> None:
        """Keep it under its name, beside another model of that name. Raises OSError."""
        asked = _question(question) if question else {"files": [file.sha256 for file in manifest.all_files]}
        text = json.dumps({"version": _VERSION, "asked": asked, "manifest": asdict(manifest)}, indent=1)
        plain = manifest.name if _PLAIN.fullmatch(manifest.name) else ""
        place = self._folder / f"{plain}.json"
        if not plain or ((known := _read(place)) is not None and known[0] != asked):
            name = re.sub(r"[^\w.-]", "_", manifest.name, flags=re.ASCII)[:80].lstrip(".")
            place = self._folder / f"{name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}.json"
        replace_file(place, text)
        self._known = (-1, [])

    def forget(self, manifest: Manifest) -> None:
        """Do not know it any more. Raises OSError."""
        for place in self._places():
            if (known := _read(place)) and known[1] == manifest:
                place.unlink(missing_ok=True)
        self._known = (-1, [])

    def _all(self) -> list[tuple[object, Manifest]]:
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return []
        if changed != self._known[0]:
            self._known = changed, [known for place in self._places() if (known := _read(place))]
        return self._known[1]

    def _places(self) -> list[Path]:
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.path for _, entry in zip(range(MAX_KEPT), entries, strict=False)]
        except OSError:
            return []
        return [Path(name) for name in sorted(names) if name.endswith(".json")]


def _question(reference: HubReference) -> dict[str, str]:
    fields = ("repository", "path", "quantization", "revision", "projector")
    return {field: getattr(reference, field) for field in fields}


def _read(place: Path) -> tuple[object, Manifest] | None:
    try:
        with place.open("rb") as file:
            return parse(file.read(MAX_KEPT_BYTES))
    except OSError:
        return None


def parse(content: bytes) -> tuple[object, Manifest] | None:
    """The question and its answer in a file of ours; None for one that is damaged or of another version."""
    try:
        data = json.loads(content)
        return (data["asked"], _manifest(data["manifest"])) if data["version"] == _VERSION else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _manifest(data: dict[str, Any]) -> Manifest:
    """Raises ValueError, TypeError or KeyError for what is no manifest."""
    files = tuple(_file(item) for item in data["files"][: MAX_FILES + 1])
    template = data["chat_template"]
    _check(0 < len(files) <= MAX_FILES)
    _check(template is None or bool(_PLAIN.fullmatch(template)))
    return Manifest(
        name=_text(data["name"], MAX_NAME),
        files=files,
        projector=_file(data["projector"]) if data["projector"] is not None else None,
        chat_template=template,
        context_length=_number(data["context_length"], 1 << 40, least=0),
        origin=_text(data["origin"], 500, least=0),
    )


def _file(data: dict[str, Any]) -> ModelFile:
    _check(is_file_name(data["name"]) and bool(SHA256.fullmatch(data["sha256"])) and len(data["sources"]) <= 16)
    size = _number(data["size"], MAX_FILE_BYTES)
    return ModelFile(data["name"], size, data["sha256"], tuple(_source(item) for item in data["sources"]))


def _source(data: dict[str, Any]) -> Source:
    if "repository" in data:
        _check(is_repository(data["repository"]) and is_repository_path(data["path"]))
        _check(bool(re.fullmatch(r"[0-9a-f]{40}", data["revision"])))
        return HubSource(data["repository"], data["revision"], data["path"])
    _check(bool(SHA256.fullmatch(data["sha256"])) and is_repository_path(data["member"]))
    _check(bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*==[A-Za-z0-9][\w.]*", data["requirement"], re.ASCII)))
    return PackageSource(data["requirement"], _number(data["size"], MAX_FILE_BYTES), data["sha256"], data["member"])


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("no manifest")


def _text(value: object, most: int, least: int = 1) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most or not (value.isprintable() or not value):
        raise ValueError("no manifest")
    return value


def _number(value: object, most: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError("no manifest")
    return value
