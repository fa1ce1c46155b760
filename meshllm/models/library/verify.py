"""Hashes the files of a model again and compares them with their expected digests.

The expected digest comes from the manifest, from the path (the Hugging Face cache and Ollama name files by digest) or
from the last hash. The result is recorded; a damaged file loses its verified state. Nothing is deleted. Blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from meshllm.errors import MeshError
from meshllm.models.catalog.catalog import load
from meshllm.models.gguf.header import read_header
from meshllm.models.transfer.prefix_hash import digests
from meshllm.util.threads import StopSignal

from .digest_index import SHA256
from .inventory import FileState, InventoryItem
from .other_apps import digest_from_link
from .store import Store


class VerifyVerdict(Enum):
    """The result; the values are for programs."""

    SOUND = "sound"
    FIRST_READ = "first-read"  # expected digest unknown: the digest was recorded
    CHANGED = "changed"  # since it was last read; the expected digest is unknown
    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FileVerification:
    """The result for one file: `sha256` as read ("" if unreadable), `expected` digest ("": unknown), and the reason."""

    path: Path
    verdict: VerifyVerdict
    sha256: str = ""
    expected: str = ""
    reason: str = ""

    @property
    def sound(self) -> bool:
        return self.verdict not in (VerifyVerdict.DAMAGED, VerifyVerdict.MISSING)


def verify_item(item: InventoryItem, store: Store, report: Callable[[Path, int], None]) -> Iterator[FileVerification]:
    """Verify each file of the model; `report` is called with the file and the bytes read so far."""
    all_files = item.manifest.all_files if item.manifest is not None else ()
    if item.state is FileState.PARTIAL:
        for file in all_files:
            if not store.has_size(file):
                where = store.folder / file.name
                yield FileVerification(
                    where, VerifyVerdict.MISSING, expected=file.sha256, reason="it is not downloaded yet"
                )
    expected = {store.path(file): file.sha256 for file in all_files}
    manifests = [
        *store.manifest_cache.manifests(),
        *(entry.manifest for entry in load().entries if entry.manifest is not None),
    ]
    known = {file.sha256 for manifest in manifests for file in manifest.all_files}
    for path in item.files:
        yield _verify_file(path, expected.get(path, ""), known, store, report)


def _verify_file(
    path: Path, expected: str, known: set[str], store: Store, report: Callable[[Path, int], None]
) -> FileVerification:
    noted = store.last_digest(path)
    wanted = expected or _digest_from_path(path) or (noted if noted in known else store.known_digest(path)) or ""
    try:
        before = path.stat()
        found = digests(StopSignal(), path, store.chunk_bytes, lambda done: report(path, done))
        after = path.stat()
    except FileNotFoundError:
        store.forget(path)
        return FileVerification(path, VerifyVerdict.MISSING, expected=wanted, reason="it is gone")
    except OSError as error:
        return FileVerification(
            path, VerifyVerdict.DAMAGED, expected=wanted, reason=f"it cannot be read: {error.strerror or error}"
        )
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return FileVerification(
            path, VerifyVerdict.CHANGED, found.sha256, wanted, "it changed during verification: verify it again"
        )
    if wanted and found.sha256 != wanted:
        store.forget(path)
        return FileVerification(
            path, VerifyVerdict.DAMAGED, found.sha256, wanted, "its sha256 differs from the expected one"
        )
    try:
        read_header(path)
    except MeshError as error:
        return FileVerification(path, VerifyVerdict.DAMAGED, found.sha256, wanted, error.message)
    store.prepare()
    store.record(path, found.sha256)
    store.record_chunks(found.sha256, found.chunks)
    if wanted:
        return FileVerification(path, VerifyVerdict.SOUND, found.sha256, wanted)
    if noted is not None and noted != found.sha256:
        return FileVerification(
            path, VerifyVerdict.CHANGED, found.sha256, noted, "it has changed since it was last read"
        )
    return FileVerification(
        path, VerifyVerdict.FIRST_READ, found.sha256, reason="expected digest unknown; recorded as it is"
    )


def _digest_from_path(path: Path) -> str:
    """The digest that the path states: the blob it links to, or is itself."""
    if digest := digest_from_link(path):
        return digest
    name = path.name.removeprefix("sha256-")
    return name if name != path.name and SHA256.fullmatch(name) else ""
