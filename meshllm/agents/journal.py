"""The journal of what was written for agents (`journal.json` in the home's folder `agents`), and the backups."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meshllm.agents.text_edit import Addition
from meshllm.errors import DamagedState
from meshllm.util.atomic_file import replace_file

VERSION = 1
JOURNAL_FILE, BACKUP_FOLDER = "journal.json", "backup"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that was changed. `before`, `after`: digests ("" for no file). `format`: the suffix of a file with
    additions, "" for a file that is wholly ours. `folders`: those that were made for it, the outermost first."""

    agent: str
    path: Path
    format: str
    existed: bool
    before: str
    after: str
    additions: tuple[Addition, ...]
    folders: tuple[Path, ...]

    @property
    def owned(self) -> bool:
        """Whether the whole file is ours."""
        return not self.format


@dataclass(frozen=True, slots=True)
class LastLaunch:
    """When an agent was started last (unix seconds), and with which model."""

    at: float
    model: str


def digest(content: bytes | None) -> str:
    """SHA-256 in hexadecimal; "" for no file."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


class Journal:
    """The journal in `folder`; every change is on the disk when its method returns. Its user holds a lock."""

    def __init__(self, folder: Path) -> None:
        """Raises DamagedState for a journal that cannot be read."""
        self._folder = folder
        self._path = folder / JOURNAL_FILE
        self._entries: list[FileEntry] = []
        self._launches: dict[str, LastLaunch] = {}
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error
        try:
            data = json.loads(text)
            self._entries = [_entry(entry) for entry in data["files"]]
            self._launches = {name: LastLaunch(**launch) for name, launch in data["launches"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error

    def entries(self, agent: str) -> list[FileEntry]:
        """The files that were changed for `agent`, in the order of the first changes."""
        return [entry for entry in self._entries if entry.agent == agent]

    def entry(self, path: Path) -> FileEntry | None:
        """What was done to a file."""
        return next((entry for entry in self._entries if entry.path == path), None)

    def holds(self, path: Path) -> bool:
        """Whether a file lies in the folder of the journal: it is ours whatever is in it."""
        return path.is_relative_to(self._folder.resolve())

    def last_launch(self, agent: str) -> LastLaunch | None:
        """The last start of `agent`."""
        return self._launches.get(agent)

    def record(self, entry: FileEntry, before: bytes | None) -> None:
        """Keep an entry, in place of the one for the same file, and the file's content of before."""
        if before is not None:
            backup = self._backup_path(entry.path)
            backup.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(backup, before, mode=0o600, durable=True)
        known = self.entry(entry.path)
        if known is None:
            self._entries.append(entry)
        else:
            self._entries[self._entries.index(known)] = entry
        self._save()

    def backup(self, entry: FileEntry) -> bytes:
        """The content of before. Raises OSError if the backup is gone or damaged."""
        content = self._backup_path(entry.path).read_bytes()
        if digest(content) != entry.before:
            raise OSError(f"the backup {self._backup_path(entry.path)} is damaged")
        return content

    def remove(self, entry: FileEntry) -> None:
        """Forget an entry and its backup."""
        self._entries.remove(entry)
        self._save()
        with suppress(OSError):
            self._backup_path(entry.path).unlink()

    def launched(self, agent: str, launch: LastLaunch) -> None:
        """Keep when `agent` was started."""
        self._launches[agent] = launch
        self._save()

    def _backup_path(self, path: Path) -> Path:
        return self._folder / BACKUP_FOLDER / f"{path.name}.{digest(str(path).encode())[:16]}"

    def _save(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = {
            "version": VERSION,
            "files": [asdict(entry) for entry in self._entries],
            "launches": {name: asdict(launch) for name, launch in self._launches.items()},
        }
        replace_file(self._path, json.dumps(data, default=str, indent=1), mode=0o600, durable=True)

    def _damaged(self, error: Exception) -> DamagedState:
        return DamagedState(
            f"The journal of agents {self._path} cannot be read: {error}.",
            advice="Restore it from a backup. Without it, what was written for agents must be removed by hand.",
        )


def _entry(data: dict[str, Any]) -> FileEntry:
    additions = [
        Addition(tuple(one["path"]), one["value"], int(one["created"]), tuple(one.get("volatile", ())))
        for one in data.pop("additions")
    ]
    path, folders = Path(data.pop("path")), tuple(map(Path, data.pop("folders")))
    return FileEntry(path=path, folders=folders, additions=tuple(additions), **data)
