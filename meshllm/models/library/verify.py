"""Reads the files of a model again and says whether they are what they should be.

Law: what a file should be is said by its manifest, by the place it lies in (the Hugging Face cache and Ollama name
files by their digests), or by what it was when it was last read; what is found is noted, and a file that is damaged is
called verified no longer. Nothing is deleted or mended here. Blocks for as long as reading takes.
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
    """What was found; the values are for programs."""

    SOUND = "sound"
    FIRST_READ = "first-read"  # nobody knows what it should be: what it is was noted
    CHANGED = "changed"  # by somebody, since it was last read; nobody else knows what it should be
    DAMAGED = "damaged"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class FileVerification:
    """Of one file: its `sha256` as read ("" if it could not be), what was `expected` ("": nobody knows), and why."""

    path: Path
    verdict: VerifyVerdict
    sha256: str = ""
    expected: str = ""
    reason: str = ""

    @property
    def sound(self) -> bool:
        return self.verdict not in (VerifyVerdict.DAMAGED, VerifyVerdict.MISSING)


def verify_item(item: InventoryItem, store: Store, report: Callable[[Path, int], None]) -> Iterator[FileVerification]:
    """The proof of each file of the model, one after the other; `report` hears how many bytes of which were read."""
    all_files = item.manifest.all_files if item.manifest is not None else ()
    if item.state is FileState.PARTIAL:
        for file in all_files:
            if not store.has_size(file):
                where = store.folder / file.name
                yield FileVerification(
                    where, VerifyVerdict.MISSING, expected=file.sha256, reason="it has not arrived yet"
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
        return FileVerification(path, VerifyVerdict.MISSING, expected=wanted, reason="it is not there any more")
    except OSError as error:
        return FileVerification(
            path, VerifyVerdict.DAMAGED, expected=wanted, reason=f"it cannot be read: {error.strerror or error}"
        )
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return FileVerification(
            path, VerifyVerdict.CHANGED, found.sha256, wanted, "somebody wrote to it meanwhile: verify it again"
        )
    if wanted and found.sha256 != wanted:
        store.forget(path)
        return FileVerification(
            path, VerifyVerdict.DAMAGED, found.sha256, wanted, "it has other bytes than it should have"
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
            path, VerifyVerdict.CHANGED, found.sha256, noted, "it was changed since it was last read"
        )
    return FileVerification(
        path, VerifyVerdict.FIRST_READ, found.sha256, reason="nobody knows what it should be: noted as it is"
    )


def _digest_from_path(path: Path) -> str:
    """The digest that the file's place gives it: the blob it is a link to, or is itself."""
    if digest := digest_from_link(path):
        return digest
    name = path.name.removeprefix("sha256-")
    return name if name != path.name and SHA256.fullmatch(name) else ""
