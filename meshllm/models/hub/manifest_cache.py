"""Manifests that were looked up at the hub, stored so that the same name works offline.

Invariants: a stored manifest is validated like foreign input; a damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from meshllm.util.atomic_file import replace_file

from .manifest import HubReference, HubSource, Manifest, ModelFile, PackageSource, Source

MAX_ENTRY_BYTES: Final = 1 << 20
MAX_ENTRIES: Final = 1024
MAX_FILES: Final = 1000  # parts of one model; the largest models have about 200
MAX_FILE_BYTES: Final = 1 << 42
MAX_NAME: Final = 255

_VERSION: Final = 1
_COMPONENT = re.compile(r"\w[\w.+,=@()\[\] -]{0,199}", re.ASCII)  # as in `names.py`
_PLAIN = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_file_name(name: str) -> bool:
    """Whether a foreign file name is safe in a folder of ours."""
    return bool(_COMPONENT.fullmatch(name)) and ".." not in name and name.casefold().endswith(".gguf")


def is_repository_path(path: str) -> bool:
    """Whether `path` is a safe path in a repository."""
    steps = path.split("/")
    return len(steps) <= 8 and all(_COMPONENT.fullmatch(step) and ".." not in step for step in steps)


def is_repository(name: str) -> bool:
    """Whether `name` is a valid repository name ("organisation/name")."""
    return bool(_REPOSITORY.fullmatch(name)) and ".." not in name


class ManifestCache:
    """The stored manifests, one file each in `folder`, with the reference that they answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cached: tuple[int, list[tuple[object, Manifest]]] = (-1, [])

    def get(self, reference: HubReference) -> Manifest | None:
        """The manifest stored for this reference."""
        asked = _reference_key(reference)
        found = next((manifest for known, manifest in self._all() if known == asked), None)
        return replace(found, name=reference.name) if found else None

    def manifests(self) -> list[Manifest]:
        """All stored manifests, by name."""
        return sorted((manifest for _, manifest in self._all()), key=lambda manifest: manifest.name)

    def put(self, manifest: Manifest, reference: HubReference | None = None) -> None:
        """Store it under its name, beside another model of that name. Raises OSError."""
        asked = _reference_key(reference) if reference else {"files": [file.sha256 for file in manifest.all_files]}
        text = json.dumps({"version": _VERSION, "asked": asked, "manifest": asdict(manifest)}, indent=1)
        plain = manifest.name if _PLAIN.fullmatch(manifest.name) else ""
        path = self._folder / f"{plain}.json"
        if not plain or ((known := _read(path)) is not None and known[0] != asked):
            name = re.sub(r"[^\w.-]", "_", manifest.name, flags=re.ASCII)[:80].lstrip(".")
            path = self._folder / f"{name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}.json"
        replace_file(path, text)
        self._cached = (-1, [])

    def forget(self, manifest: Manifest) -> None:
        """Remove it. Raises OSError."""
        for path in self._paths():
            if (known := _read(path)) and known[1] == manifest:
                path.unlink(missing_ok=True)
        self._cached = (-1, [])

    def _all(self) -> list[tuple[object, Manifest]]:
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return []
        if changed != self._cached[0]:
            self._cached = changed, [known for path in self._paths() if (known := _read(path))]
        return self._cached[1]

    def _paths(self) -> list[Path]:
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.path for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
        except OSError:
            return []
        return [Path(name) for name in sorted(names) if name.endswith(".json")]


def _reference_key(reference: HubReference) -> dict[str, str]:
    fields = ("repository", "path", "quantization", "revision", "projector")
    return {field: getattr(reference, field) for field in fields}


def _read(path: Path) -> tuple[object, Manifest] | None:
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_ENTRY_BYTES))
    except OSError:
        return None


def parse(content: bytes) -> tuple[object, Manifest] | None:
    """The reference and its answer in a cache file; None for a file that is damaged or of another version."""
    try:
        entry = _CacheEntry.model_validate_json(content)
    except ValidationError:
        return None
    return entry.asked, entry.manifest.to_manifest()


# -- the schema of a cache file


def _check(accepts: Callable[[str], bool]) -> AfterValidator:
    def check(text: str) -> str:
        if not accepts(text):
            raise ValueError("not allowed")
        return text

    return AfterValidator(check)


_FileName = Annotated[str, Field(max_length=MAX_NAME), _check(is_file_name)]
_RepositoryPath = Annotated[str, _check(is_repository_path)]
_Repository = Annotated[str, _check(is_repository)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
_Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*==[A-Za-z0-9][A-Za-z0-9_.]*$")]
_FileSize = Annotated[int, Field(gt=0, le=MAX_FILE_BYTES)]
_Printable = _check(lambda text: text.isprintable() or not text)


class _Stored(BaseModel):
    # `defer_build`: the validators are made when a manifest is read, not when this module is imported.
    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)


class _StoredHubSource(_Stored):
    repository: _Repository
    revision: _Commit
    path: _RepositoryPath

    def to_source(self) -> Source:
        return HubSource(self.repository, self.revision, self.path)


class _StoredPackageSource(_Stored):
    requirement: _Requirement
    size: _FileSize
    sha256: _Digest
    member: _RepositoryPath

    def to_source(self) -> Source:
        return PackageSource(self.requirement, self.size, self.sha256, self.member)


class _StoredFile(_Stored):
    name: _FileName
    size: _FileSize
    sha256: _Digest
    sources: list[_StoredHubSource | _StoredPackageSource] = Field(max_length=16)

    def to_file(self) -> ModelFile:
        return ModelFile(self.name, self.size, self.sha256, tuple(source.to_source() for source in self.sources))


class _StoredManifest(_Stored):
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME), _Printable]
    files: list[_StoredFile] = Field(min_length=1, max_length=MAX_FILES)
    projector: _StoredFile | None
    chat_template: Annotated[str, _check(lambda text: bool(_PLAIN.fullmatch(text)))] | None
    context_length: Annotated[int, Field(ge=0, le=1 << 40)]
    origin: Annotated[str, Field(max_length=500), _Printable]

    def to_manifest(self) -> Manifest:
        return Manifest(
            name=self.name,
            files=tuple(file.to_file() for file in self.files),
            projector=self.projector.to_file() if self.projector is not None else None,
            chat_template=self.chat_template,
            context_length=self.context_length,
            origin=self.origin,
        )


class _CacheEntry(_Stored):
    version: Literal[1]
    asked: object
    manifest: _StoredManifest
