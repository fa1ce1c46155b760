"""Applies unified diffs strictly: each hunk must match at its exact line, without fuzz or offset.

Invariant: all changes of a patch are computed before the first file is written, and no file outside the tree is
touched. (`patch` and `git apply` are not installed on every machine with a compiler.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meshllm.errors import EngineUnavailable
from meshllm.util.atomic_file import replace_file

_HUNK = re.compile(r"@@ -(\d{1,7})(?:,(\d{1,7}))? \+(\d{1,7})(?:,(\d{1,7}))? @@.*")
_REFUSED = ("rename from ", "copy from ", "GIT binary patch", "Binary files ", "old mode ")
MAX_FILE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hunk:
    """Replaces the lines `before` at line `start` (from 1) by `after`. Lines include their line ends."""

    start: int
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileChange:
    """The hunks for one file; `created` and `deleted`: the old or the new name is /dev/null."""

    path: str
    hunks: tuple[Hunk, ...]
    created: bool = False
    deleted: bool = False


class _PatchReader:
    """Reads a patch line by line. Only a line feed ends a line, as in the format."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.split("\n")
        self.position = 0
        if self.lines and not self.lines[-1]:
            self.lines.pop()

    def peek(self) -> str | None:
        return self.lines[self.position] if self.position < len(self.lines) else None

    def error(self, what: str) -> EngineUnavailable:
        return _refused(self.name, f"line {self.position + 1}: {what}")


def parse(name: str, text: str) -> tuple[FileChange, ...]:
    """The changes in a patch. Raises EngineUnavailable, naming the line, for anything but a plain unified diff."""
    reader = _PatchReader(name, text)
    changes: list[FileChange] = []
    while (line := reader.peek()) is not None:
        if line.startswith(_REFUSED):
            raise reader.error("renames, copies, mode changes and binary diffs are not supported")
        if line.startswith("@@"):
            raise reader.error("a hunk without a file name")
        if line.startswith("--- ") and reader.position + 1 < len(reader.lines):
            following = reader.lines[reader.position + 1]
            if following.startswith("+++ "):
                changes.append(_parse_file(reader, line[4:], following[4:]))
                continue
        reader.position += 1
    if not changes:
        raise _refused(name, "it changes nothing")
    if 0 < sum(line.startswith("diff --git ") for line in reader.lines) != len(changes):
        raise _refused(name, "it changes a file without a hunk (an empty file, or a mode)")
    paths = [change.path for change in changes]
    if len(set(paths)) != len(paths):
        raise _refused(name, "it names a file twice")
    return tuple(changes)


def _parse_file(reader: _PatchReader, old: str, new: str) -> FileChange:
    old_path, new_path = (_path_of(reader, raw) for raw in (old, new))
    path = new_path or old_path
    if path is None or (old_path and new_path and old_path != new_path):
        raise reader.error("the two file names differ")
    reader.position += 2
    hunks: list[Hunk] = []
    while (line := reader.peek()) is not None and line.startswith("@@"):
        hunks.append(_parse_hunk(reader, line))
    if not hunks:
        raise reader.error(f"no hunk for {path}")
    created, deleted = old_path is None, new_path is None
    if (created and (len(hunks) != 1 or hunks[0].before)) or (deleted and (len(hunks) != 1 or hunks[0].after)):
        raise reader.error(f"{path} must be created or deleted as a whole")
    return FileChange(path, tuple(hunks), created, deleted)


def _path_of(reader: _PatchReader, raw: str) -> str | None:
    """The path without `a/` or `b/`, or None for /dev/null. Raises EngineUnavailable for an unsafe path."""
    path = raw.split("\t", 1)[0].rstrip("\r")
    if path == "/dev/null":
        return None
    prefix, _, rest = path.partition("/")
    parts = PurePosixPath(rest).parts
    if prefix not in ("a", "b") or not parts or rest != "/".join(parts) or len(rest) > 500:
        raise reader.error("a file name must be a plain path after a/ or b/")
    if ".." in parts or "." in parts or rest.startswith("/") or "\\" in rest or "\0" in rest:
        raise reader.error("a file name leaves the tree")
    return rest


def _parse_hunk(reader: _PatchReader, header: str) -> Hunk:
    match = _HUNK.fullmatch(header)
    if match is None:
        raise reader.error("malformed hunk header")
    start, old_left, new_left = int(match[1]), int(match[2] or "1"), int(match[4] or "1")
    if start == 0 and old_left:
        raise reader.error("a hunk starts at line 0")
    after_start = start + 1 if old_left == 0 else start
    reader.position += 1
    before: list[str] = []
    after: list[str] = []
    while old_left or new_left:
        line = reader.peek()
        if line is None:
            raise reader.error("the hunk ends too early")
        kind, body = line[:1] or " ", line[1:] + "\n"  # mailers may strip the space of an empty context line
        if kind not in " -+":
            raise reader.error("not a line of a hunk")
        if kind in " -":
            before.append(body)
            old_left -= 1
        if kind in " +":
            after.append(body)
            new_left -= 1
        if old_left < 0 or new_left < 0:
            raise reader.error("the hunk is longer than its header says")
        reader.position += 1
        following = reader.peek()
        if following is not None and following.startswith("\\"):
            for side in (before,) if kind == "-" else (after,) if kind == "+" else (before, after):
                side[-1] = side[-1][:-1]
            reader.position += 1
    return Hunk(after_start, tuple(before), tuple(after))


def apply(tree: Path, name: str, text: str) -> tuple[str, ...]:
    """Apply a patch to the files under `tree`; returns the paths it touched.

    Every result is computed before the first is written. Raises EngineUnavailable, naming the file and the hunk.
    """
    results: list[tuple[Path, bytes | None]] = []
    changes = parse(name, text)
    for change in changes:
        target = tree / change.path
        if not target.parent.resolve().is_relative_to(tree.resolve()) or target.is_symlink():
            raise _refused(name, f"{change.path} leaves the tree")
        results.append((target, _changed(name, target, change)))
    for target, data in results:
        if data is None:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666
        replace_file(target, data, mode=mode)
    return tuple(change.path for change in changes)


def _changed(name: str, target: Path, change: FileChange) -> bytes | None:
    """The new content of a file, or None if the patch deletes it."""
    if change.created:
        if target.exists():
            raise _refused(name, f"{change.path} exists already")
        return "".join(change.hunks[0].after).encode("utf-8", "surrogateescape")
    if not target.is_file() or target.stat().st_size > MAX_FILE_BYTES:
        raise _refused(name, f"{change.path} is not in the unpacked source")
    text = target.read_bytes().decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    source = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    output: list[str] = []
    position = 0
    for number, hunk in enumerate(change.hunks, 1):
        start = hunk.start - 1
        if start < position or tuple(source[start : start + len(hunk.before)]) != hunk.before:
            raise _refused(name, f"{change.path}: hunk {number} (line {hunk.start}) does not match the source")
        output += source[position:start]
        output += hunk.after
        position = start + len(hunk.before)
    output += source[position:]
    if change.deleted:
        if output:
            raise _refused(name, f"{change.path}: the deletion does not cover the whole file")
        return None
    return "".join(output).encode("utf-8", "surrogateescape")


def _refused(name: str, what: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The patch {name} does not apply: {what}.",
        advice="Rebase it on the pinned source, see llama.cpp/README.md.",
    )
