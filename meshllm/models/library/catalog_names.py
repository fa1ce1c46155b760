"""Decides whether a file that has a name of the catalogue is the catalogue's model.

Invariants: a name of the catalogue counts only with the catalogue's digests. Content that differs is served only if the
owner names it by its path; content that was not hashed yet counts as unread. Files of other names are not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.models.catalog.catalog import Catalog
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.catalog.names import model_name, part_of
from meshllm.models.hub.manifest import Manifest

from .other_apps import digest_from_link
from .store import Store

_SHOWN: Final = 12  # letters of a digest


@dataclass(frozen=True, slots=True)
class NameVerdict:
    """Whether the name counts; if not, the files to hash first (`unread`), or else the `reason`, for users."""

    counts: bool
    unread: tuple[Path, ...] = ()
    reason: str = ""


COUNTS: Final = NameVerdict(True)


@dataclass(frozen=True, slots=True)
class _Expected:
    """A file of the catalogue; `size` None: only the digest is known."""

    size: int | None
    sha256: str


class CatalogNames:
    """The names that belong to the catalogue: of its models, of their first files, and with the quantization."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._store = store
        self._entries: dict[str, CatalogEntry] = {}
        for entry in catalog.entries:
            stem = (model_name(entry.file_name),) if entry.file_name else ()
            for name in (entry.name, *entry.aliases, *stem, f"{entry.name}-{entry.quantization}"):
                self._entries.setdefault(name.casefold(), entry)

    def judge(self, name: str, wanted: Wanted) -> NameVerdict:
        """Whether what was found as `wanted` may have that name. Blocks; hashes nothing."""
        entry = self._entries.get(name.casefold())
        if entry is None:
            return COUNTS
        expected = self._expected(entry)
        if not expected:
            return NameVerdict(
                False,
                reason=f"It has the name of the catalogue's {entry.name}, whose digest only the hub knows. "
                f"`mesh-llm download {entry.name}` checks it.",
            )
        if isinstance(wanted, Path):
            return self._judge_files(entry, _parts(wanted), expected)
        manifest = self._store.manifest_of(wanted)
        if manifest is None:
            return COUNTS  # nothing of it is here
        if [file.sha256 for file in manifest.files] != [file.sha256 for file in expected]:
            path = self._store.path(manifest.files[0])
            return _differs(entry, path, manifest.files[0].sha256, expected[0].sha256)
        return self._judge_manifest(manifest)

    def _expected(self, entry: CatalogEntry) -> list[_Expected]:
        manifest = self._store.manifest_of(entry)
        if manifest is not None:
            return [_Expected(file.size, file.sha256) for file in manifest.files]
        one_file = entry.sha256 and part_of(entry.file_name) is None
        return [_Expected(None, entry.sha256)] if one_file else []

    def _judge_files(self, entry: CatalogEntry, paths: Sequence[Path], expected: Sequence[_Expected]) -> NameVerdict:
        if len(paths) != len(expected):
            return NameVerdict(False, reason=_advice(entry, f"{len(paths)} files instead of {len(expected)}", paths[0]))
        unread = []
        for path, file in zip(paths, expected, strict=True):
            found = self._digest(path)
            size = path.stat().st_size
            if found is not None and found != file.sha256:
                return _differs(entry, path, found, file.sha256)
            if file.size not in (None, size):
                return NameVerdict(False, reason=_advice(entry, f"{size:,} bytes instead of {file.size:,}", path))
            if found is None:
                unread.append(path)
        return _unread(unread)

    def _judge_manifest(self, manifest: Manifest) -> NameVerdict:
        """Of a manifest with the catalogue's digests: whether its files were hashed."""
        if self._store.find_together(manifest.files) is not None:
            files = [manifest.projector] if manifest.projector is not None else []
        else:
            files = list(manifest.all_files)
        return _unread([self._store.path(file) for file in files if not self._store.is_verified(file)])

    def _digest(self, path: Path) -> str | None:
        return self._store.known_digest(path) or digest_from_link(path) or None


def _parts(path: Path) -> tuple[Path, ...]:
    """All files of the model, by their names."""
    part = part_of(path.name)
    if part is None:
        return (path,)
    begin, _, end = part.first.rpartition("-00001-of-")
    return tuple(path.with_name(f"{begin}-{number:05d}-of-{end}") for number in range(1, part.parts + 1))


def _unread(paths: Sequence[Path]) -> NameVerdict:
    return NameVerdict(False, unread=tuple(paths)) if paths else COUNTS


def _differs(entry: CatalogEntry, path: Path, found: str, expected: str) -> NameVerdict:
    words = f"sha256 {found[:_SHOWN]} instead of {expected[:_SHOWN]}"
    return NameVerdict(False, reason=_advice(entry, words, path))


def _advice(entry: CatalogEntry, difference: str, path: Path) -> str:
    return (
        f"It has the name of the catalogue's {entry.name} and other content ({difference}): it is not offered to "
        f"other nodes. Serve it by its path (--model {path}), or give the file another name."
    )
