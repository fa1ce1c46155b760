"""Installs the skill `mesh-blackboard` for coding agents, and takes it away again.

One copy in ~/.agents/skills, where most agents look; a link to it in the folders of those that look elsewhere, or a
second copy where links cannot be made. Invariants: what the user wrote or changed is kept and named; the journal is on
the disk before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from meshllm.agents.journal import FileEntry, Journal, digest
from meshllm.agents.user_files import UndoResult, UserFileChange, read_file, undo_entry, write_change
from meshllm.errors import EnvironmentFailure

SKILL, SKILL_FILE = "mesh-blackboard", "SKILL.md"
SHARED_FOLDER = ".agents/skills"
# Whose entries they are in the journal; no agent has such a name.
OWNER = f"skill {SKILL}"
LINK_FORMAT = "link"


@dataclass(frozen=True, slots=True)
class SkillStep:
    """What is done in one place: `change` is written, or a link to `target` is made at `path`, or nothing. `kept`: the
    place is the user's, and stays as it is. `text`: for people."""

    path: Path
    text: str
    change: UserFileChange | None = None
    target: Path | None = None
    kept: bool = False


def skill_text() -> bytes:
    """The skill of this version."""
    return resources.files("meshllm.agents").joinpath("skills", SKILL, SKILL_FILE).read_bytes()


def plan_skill(
    user: Path, folders: Sequence[Path], journal: Journal, content: bytes, *, links: bool = True
) -> list[SkillStep]:
    """What installing `content` does: the copy in the home `user`, and links (or copies) in `folders`. Writes nothing.
    Raises FileRefused for what cannot be read."""
    shared = (user / SHARED_FOLDER).resolve() / SKILL
    first = _copy(shared, journal, content)
    if first.kept and journal.entry(shared / SKILL_FILE) is None:
        return [first]  # another's skill: nothing is linked to it
    places = [folder.resolve() / SKILL for folder in folders]
    if links:
        return [first, *(_link(place, shared, journal, content) for place in places)]
    return [first, *(_copy(place, journal, content) for place in places)]


def apply_skill(steps: Sequence[SkillStep], journal: Journal, content: bytes) -> list[SkillStep]:
    """Do the steps; returns what was done. Raises EnvironmentFailure for a place that cannot be written."""
    done = []
    for step in steps:
        try:
            done.append(_apply(step, journal, content))
        except OSError as error:
            raise EnvironmentFailure(
                f"{step.path} cannot be written: {error.strerror or error}.",
                advice="Make it writable for this user, or free disk space. It is unchanged.",
            ) from error
    return done


def undo_skill(journal: Journal) -> list[UndoResult]:
    """Take back everything that was installed, the last first."""
    entries = reversed(journal.entries(OWNER))
    return [_unlink(entry, journal) if entry.format == LINK_FORMAT else undo_entry(entry, journal) for entry in entries]


def _copy(folder: Path, journal: Journal, content: bytes) -> SkillStep:
    """The copy in `folder`."""
    path = folder / SKILL_FILE
    entry = journal.entry(path)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return SkillStep(folder, "is not of mesh-llm: it is kept.", kept=True)
    current = read_file(path)
    if current == content:
        return SkillStep(path, "is up to date.")
    if entry is None and folder.exists():
        return SkillStep(folder, "exists, and mesh-llm did not write it: it is kept. Move it away first.", kept=True)
    if entry is not None and current is not None and digest(current) != entry.after:
        text = "was changed since mesh-llm wrote it: it is kept. Move it away to have it written again."
        return SkillStep(path, text, kept=True)
    change = UserFileChange(path, None, current, content, owned=True)
    return SkillStep(path, "written." if current is None else "upgraded.", change)


def _link(place: Path, shared: Path, journal: Journal, content: bytes) -> SkillStep:
    """The link at `place`."""
    if place == shared:
        return SkillStep(place, "is the same folder.")
    if place.is_symlink():
        if place.readlink() == shared or place.resolve() == shared:
            return SkillStep(place, "is up to date.")
        entry = journal.entry(place)
        if entry is None or digest(os.fsencode(place.readlink())) != entry.after:
            return SkillStep(place, "is a link that mesh-llm did not make: it is kept.", kept=True)
        return SkillStep(place, f"linked to {shared}.", target=shared)
    if place.exists():
        return _copy(place, journal, content)  # one of ours, or the user's
    return SkillStep(place, f"linked to {shared}.", target=shared)


def _apply(step: SkillStep, journal: Journal, content: bytes) -> SkillStep:
    if step.change is not None:
        write_change(OWNER, step.change, journal)
    if step.target is None:
        return step
    try:
        _make_link(step.path, step.target, journal)
    except (OSError, NotImplementedError):
        entry = journal.entry(step.path)
        if entry is not None:
            journal.remove(entry)
        copy = _copy(step.path, journal, content)
        if copy.change is None:
            return copy
        write_change(OWNER, copy.change, journal)
        return SkillStep(copy.path, "written: no link can be made there.", copy.change)
    return step


def _make_link(place: Path, target: Path, journal: Journal) -> None:
    missing = [folder for folder in reversed(place.parents) if not folder.exists()]
    known = journal.entry(place)
    journal.record(
        FileEntry(
            agent=OWNER,
            path=place,
            format=LINK_FORMAT,
            existed=False,
            before="",
            after=digest(os.fsencode(target)),
            additions=(),
            folders=tuple(missing) if known is None else (*known.folders, *missing),
        ),
        None,
    )
    scratch = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        for folder in missing:
            folder.mkdir(mode=0o700, exist_ok=True)
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target, target_is_directory=True)
        scratch.replace(place)
    except (OSError, NotImplementedError):
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in reversed(missing):
                folder.rmdir()
        raise


def _unlink(entry: FileEntry, journal: Journal) -> UndoResult:
    path = entry.path
    if not path.is_symlink() and not path.exists():
        result = UndoResult(path, "is gone already", True)
    elif path.is_symlink() and digest(os.fsencode(path.readlink())) == entry.after:
        try:
            path.unlink()
        except OSError as error:
            return UndoResult(path, f"cannot be removed: {error.strerror or error}.", False)
        with suppress(OSError):
            for folder in reversed(entry.folders):
                folder.rmdir()
        result = UndoResult(path, "removed", True)
    else:
        result = UndoResult(path, "is not the link that mesh-llm made any more, and is kept", True)
    journal.remove(entry)
    return result
