"""Changes the files of agents and takes the changes back.

Invariants: a file of the user is changed by additions alone, and only if it can be read; nothing is written before all
files of a setup are known to take their additions. A backup and the journal are on the disk before a file changes. Undo
restores the bytes of before, or, in a file that was changed since, takes out what was added.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshllm.agents import json_text, toml_text, yaml_text
from meshllm.agents.description import Agent, FileStep, Setup
from meshllm.agents.filling import Values, fill, fill_text, written
from meshllm.agents.journal import FileEntry, Journal, digest
from meshllm.agents.text_edit import Addition, CannotEdit, TextFormat, add_checked, remove_checked, same
from meshllm.errors import EnvironmentFailure, InputError
from meshllm.util.atomic_file import replace_file

FORMATS = {
    "json": TextFormat(json_text.parse, json_text.add, json_text.remove, "{}\n"),
    "yaml": TextFormat(yaml_text.parse, yaml_text.add, yaml_text.remove, ""),
    "toml": TextFormat(toml_text.parse, toml_text.add, toml_text.remove, ""),
}
_FORMAT_OF = {".yml": "yaml", ".yaml": "yaml", ".toml": "toml"}
# Larger than any settings file that a person keeps.
MAX_BYTES = 4 << 20


class FileRefused(InputError):
    """A file of the user that cannot take the additions; it is unchanged."""

    code = "file_refused"


@dataclass(frozen=True, slots=True)
class UserFileChange:
    """A change that is ready to be written. `path` is free of links. `before`: the bytes without our additions, None if
    there is no such file; `current`: those on the disk."""

    path: Path
    before: bytes | None
    current: bytes | None
    after: bytes
    additions: tuple[Addition, ...] = ()
    owned: bool = False


@dataclass(frozen=True, slots=True)
class UndoResult:
    """What became of a file. `done`: nothing of ours is left in it."""

    path: Path
    text: str
    done: bool


def plan(agent: Agent, setup: Setup, values: Values, journal: Journal) -> list[UserFileChange]:
    """The changes of a setup; writes nothing. Raises FileRefused for the first file that cannot take its part."""
    changes = []
    for step in setup.files:
        path = locate(step, values)
        change = (
            _owned(step, path, values, journal)
            if step.content is not None
            else _merged(agent, step, path, values, journal)
        )
        if values.key and values.key.encode() in change.after and change.current is not None:
            _check_private(change.path)
        changes.append(change)
    return changes


def locate(step: FileStep, values: Values) -> Path:
    """The file that a step means, links resolved."""
    candidates = [Path(fill_text(path, values)) for path in step.paths]
    return next((path for path in candidates if path.exists()), candidates[0]).resolve()


def apply(agent: Agent, changes: Sequence[UserFileChange], journal: Journal) -> list[Path]:
    """Write the changes; returns the files that changed. Raises FileRefused for a file that changed meanwhile, and
    EnvironmentFailure for one that cannot be written."""
    written_paths = []
    for change in changes:
        if change.current == change.after:
            continue
        try:
            write_change(agent.name, change, journal)
        except OSError as error:
            raise EnvironmentFailure(
                f"{change.path} cannot be written: {error.strerror or error}.",
                advice="Make it writable for this user, or free disk space. It is unchanged.",
            ) from error
        written_paths.append(change.path)
    return written_paths


def undo(agent: Agent, journal: Journal) -> list[UndoResult]:
    """Take back every change that was made for `agent`, the last one first."""
    return [undo_entry(entry, journal) for entry in reversed(journal.entries(agent.name))]


def undo_entry(entry: FileEntry, journal: Journal) -> UndoResult:
    """Take back one change, and forget it if nothing of it is left."""
    try:
        result = _undo(entry, journal)
    except (OSError, CannotEdit) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        result = UndoResult(entry.path, f"left as it is: {reason}. Remove the entry of mesh-llm by hand.", False)
    if result.done:
        journal.remove(entry)
    return result


def withdraw(agent: Agent, places: Sequence[Path], journal: Journal) -> list[Path]:
    """Take back what was written to these files for `agent`, if anything was; returns the files. Raises FileRefused for
    one that still has it."""
    entries = [entry for path in places if (entry := journal.entry(path)) is not None and entry.agent == agent.name]
    for entry in entries:
        result = undo_entry(entry, journal)
        if not result.done:
            raise FileRefused(f"{entry.path} still gives {agent.title} the blackboard: {result.text}")
    return [entry.path for entry in entries]


def _owned(step: FileStep, path: Path, values: Values, journal: Journal) -> UserFileChange:
    """The whole content of a file of ours. One in the agent's own folder is replaced, one elsewhere only if it is as
    mesh-llm wrote it."""
    after = written(fill(step.content, values), step.format).encode()
    current = read_file(path)
    entry = journal.entry(path)
    inside = path.is_relative_to(Path(values.folders["folder"]).resolve())
    if current is not None and current != after and not inside:
        if entry is None:
            raise FileRefused(
                f"{path} exists, and mesh-llm did not write it. It is left as it is.",
                advice="Move it away, then run the command again.",
            )
        if digest(current) != entry.after:
            raise FileRefused(
                f"{path} was changed since mesh-llm wrote it. It is left as it is.",
                advice="Move it away to have it written again.",
            )
    return UserFileChange(path, None, current, after, owned=True)


def _merged(agent: Agent, step: FileStep, path: Path, values: Values, journal: Journal) -> UserFileChange:
    form, current, entry = FORMATS[step.format], read_file(path), journal.entry(path)
    shown = f"{agent.title} is not configured in {path}"
    setups = [setup for setup in (agent.launch, agent.board) if setup is not None]
    launched = any(step.paths == other.paths for setup in setups for other in setup.files)
    option = "--print" if launched else "--print --write"
    try:
        before = current if entry is None or current is None else _without_ours(form, current, entry, journal)
        text = "" if before is None else before.decode()
        if not text.strip("\ufeff \t\r\n"):
            text = form.empty
            for key, one in (step.initial or {}).items():
                text = form.add(text, (key,), one)
        additions = []
        for merge in step.merges:
            at, value = tuple(fill(list(merge.at), values)), fill(merge.value, values)
            if same(_value_at(form.parse(text), at), value):
                continue  # the user wrote the same
            text, addition = add_checked(form, text, at, value, merge.volatile)
            additions.append(addition)
    except UnicodeDecodeError:
        raise FileRefused(f"{shown}: the file is not UTF-8. It is left as it is.", advice="Repair the file.") from None
    except CannotEdit as error:
        raise FileRefused(
            f"{shown}: {error}. The file is left as it is.",
            advice=f"{error.advice or 'Correct it'}, or add this by hand (mesh-llm {agent.name} {option} shows it).",
        ) from None
    after = text.encode()
    if not additions and entry is None:
        after = current or b""
    return UserFileChange(path, before, current, after, tuple(additions))


def _without_ours(form: TextFormat, current: bytes, entry: FileEntry, journal: Journal) -> bytes | None:
    """The file without the additions of before. Raises CannotEdit, UnicodeDecodeError."""
    if digest(current) == entry.after:
        return journal.backup(entry) if entry.existed else None
    if digest(current) == entry.before:
        return current
    text = current.decode()
    for addition in reversed(entry.additions):
        text = remove_checked(form, text, addition)
    return text.encode()


def _value_at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def write_change(owner: str, change: UserFileChange, journal: Journal) -> None:
    """Write one change; `owner` is the agent of its entry. Raises FileRefused as `apply`, and OSError."""
    if read_file(change.path) != change.current:
        raise FileRefused(f"{change.path} changes right now. It is left as it is.", advice="Run the command again.")
    missing = [folder for folder in reversed(change.path.parents) if not folder.exists()]
    mode = stat.S_IMODE(change.path.stat().st_mode) if change.current is not None else 0o600
    known = journal.entry(change.path)
    made = tuple(missing) if known is None else (*known.folders, *missing)
    journal.record(
        FileEntry(
            agent=owner,
            path=change.path,
            format="" if change.owned else change.path.suffix,
            existed=change.before is not None,
            before=digest(change.before),
            after=digest(change.after),
            additions=change.additions,
            folders=made,
        ),
        change.before,
    )
    for folder in missing:
        folder.mkdir(mode=0o700, exist_ok=True)  # the journal may have made it
    replace_file(change.path, change.after, mode=mode, durable=True)
    change.path.chmod(mode)


def _undo(entry: FileEntry, journal: Journal) -> UndoResult:
    current = read_file(entry.path)
    if current is None:
        return UndoResult(entry.path, "is gone already", True)
    if digest(current) == entry.before:
        return UndoResult(entry.path, "has nothing of mesh-llm in it", True)
    exact = digest(current) == entry.after
    if exact and entry.existed:
        return _restore(entry, journal.backup(entry), "restored")
    if exact or (entry.owned and journal.holds(entry.path)):
        _delete(entry)
        return UndoResult(entry.path, "removed", True)
    if entry.owned:
        return UndoResult(entry.path, "was changed since mesh-llm wrote it and is kept. Remove it by hand.", False)
    form = FORMATS[_FORMAT_OF.get(entry.format, "json")]
    text = current.decode()
    for addition in reversed(entry.additions):
        text = remove_checked(form, text, addition)
    if not entry.existed and not form.parse(text):
        _delete(entry)
        return UndoResult(entry.path, "removed", True)
    return _restore(entry, text.encode(), "was changed since: what mesh-llm added is taken out, the rest is kept")


def _restore(entry: FileEntry, content: bytes, text: str) -> UndoResult:
    mode = stat.S_IMODE(entry.path.stat().st_mode)
    replace_file(entry.path, content, mode=mode, durable=True)
    entry.path.chmod(mode)
    return UndoResult(entry.path, text, True)


def _delete(entry: FileEntry) -> None:
    """Remove a file, and the folders that were made for it if nothing else is in them."""
    entry.path.unlink()
    with suppress(OSError):
        for folder in reversed(entry.folders):
            folder.rmdir()


def read_file(path: Path) -> bytes | None:
    """The content of a file; None if there is none. Raises FileRefused for what cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileRefused(
            f"{path} cannot be read: {error.strerror or error}.", advice="Make it a file that this user can read."
        ) from error
    if len(data) > MAX_BYTES:
        raise FileRefused(
            f"{path} has more than {MAX_BYTES >> 20} MiB. It is left as it is.", advice="Make it smaller."
        )
    return data


def _check_private(path: Path) -> None:
    """Raise FileRefused if other users may read a file that is to hold the key."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and os.name == "posix":
        raise FileRefused(
            f"The key of the node would be written to {path}, which other users of this machine may read.",
            advice=f"Keep them out (chmod 600 {path}), then run the command again.",
        )
