"""The room of a working directory: `owner/name` of its git remote. Reads git's files itself and starts no process.

What a repository says is data: it is bounded, and names of users, hosts and passwords in the remote's address are
dropped. Two checkouts of one repository are in one room, whatever protocol they use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from meshllm.core.board.entries import MAX_ROOM_BYTES

# The remote that names the room; without it the first one of the file does.
ORIGIN: Final = "origin"
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_LINK_BYTES: Final = 8192
MAX_PARENTS: Final = 64

_SECTION: Final = re.compile(r'\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\]|\\.)*)")?\s*\]')
_SETTING: Final = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*=\s*(.*)", re.DOTALL)
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^/]*)(?P<path>.*)", re.DOTALL)
_SCP: Final = re.compile(r"(?:[^@/\\:]*@)?(?P<host>\[[^\]/]+\]|[^/\\:]{2,}):(?P<path>.*)", re.DOTALL)


def room_of(directory: Path) -> str:
    """The room of `directory` or its parents, at most MAX_ROOM_BYTES of UTF-8; empty outside a repository. Blocks."""
    try:
        place = directory.absolute()
    except OSError:
        return ""
    for folder in [place, *place.parents][:MAX_PARENTS]:
        git = _git_folder(folder / ".git")
        if git is None:
            continue
        common = _common_folder(git)
        remote = _remote(_read(common / "config", MAX_CONFIG_BYTES))
        return room_of_remote(remote) or _cleaned([_name_of_root(folder, common)])
    return ""


def room_here() -> str:
    """The room of the working directory; empty outside a repository, or if the directory was removed."""
    try:
        return room_of(Path.cwd())
    except OSError:
        return ""


def room_of_remote(url: str) -> str:
    """The room of a remote's address: the last two parts of its path; the last one of a path of this machine."""
    url = url.strip()
    if (match := _URL.fullmatch(url)) is not None:
        local = match["scheme"].lower() == "file"
    elif (match := _SCP.fullmatch(url)) is not None:
        local = False
    else:
        return _cleaned(_parts(url)[-1:])
    parts = [part for part in _parts(match["path"]) if part != "_git"]
    return _cleaned(parts[-1:] if local else parts[-2:])


def _parts(path: str) -> list[str]:
    """The parts of a path of a repository, without its ending and what a web address adds."""
    path = re.split(r"[?#]", path, maxsplit=1)[0]
    parts = [part for part in re.split(r"[/\\]+", path.strip()) if part not in ("", ".", "..")]
    if parts:
        parts[-1] = re.sub(r"(?i)\.git$", "", parts[-1])
        if not parts[-1]:  # the folder .git itself
            del parts[-1]
    return parts


def _cleaned(parts: list[str]) -> str:
    """One room name of these parts. Letter case does not tell repositories apart."""
    words = [re.sub(r"[^\w.+-]+", "-", part, flags=re.ASCII if part.isascii() else 0).strip("-.") for part in parts]
    room = "/".join(word for word in words if word).lower()
    return room.encode()[:MAX_ROOM_BYTES].decode(errors="ignore").strip("/-.")


def _git_folder(git: Path) -> Path | None:
    """The folder that `.git` is, or that it names in a worktree or a submodule; None if it is none of git's."""
    if git.is_file():
        text = _read(git, MAX_LINK_BYTES).strip()
        if not text.startswith("gitdir:"):
            return None
        git = git.parent / text.removeprefix("gitdir:").strip()
    try:
        return git if (git / "HEAD").is_file() else None
    except (OSError, ValueError):
        return None


def _common_folder(git: Path) -> Path:
    """Where the configuration lies: worktrees share that of their repository."""
    link = _read(git / "commondir", MAX_LINK_BYTES).strip()
    return git / link if link else git


def _name_of_root(folder: Path, common: Path) -> str:
    """The name of a repository without a remote: of its first checkout, not of a worktree."""
    try:
        common = common.resolve()
    except (OSError, RuntimeError):
        return folder.name
    if common.name == ".git":
        return common.parent.name
    return folder.name if common.parent.name in ("modules", "worktrees") else (_parts(common.name) or [folder.name])[-1]


def _read(path: Path, limit: int) -> str:
    """The beginning of a file; empty if it cannot be read, or is no file."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(limit).decode(errors="replace")
    except (OSError, ValueError):
        return ""


def _remote(config: str) -> str:
    """The address of the remote, in the text of git's configuration; empty if there is none."""
    urls: dict[str, str] = {}
    remote: str | None = None
    for line in config.replace("\\\n", "").splitlines():
        text = line.strip()
        if (section := _SECTION.match(text)) is not None:
            name = section[2]
            remote = re.sub(r"\\(.)", r"\1", name) if section[1].lower() == "remote" and name is not None else None
            text = text[section.end() :].strip()
        setting = _SETTING.fullmatch(text)
        if remote is not None and setting is not None and setting[1].lower() == "url":
            urls.setdefault(remote, _value(setting[2]))
    return urls.get(ORIGIN) or next((url for url in urls.values() if url), "")


def _value(text: str) -> str:
    """A value of git's configuration: without quotes, escapes and a comment at its end."""
    letters: list[str] = []
    quoted = escaped = False
    for letter in text:
        if escaped:
            letters.append({"n": "\n", "t": "\t", "b": ""}.get(letter, letter))
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter in "#;" and not quoted:
            break
        else:
            letters.append(letter)
    return "".join(letters).strip()
