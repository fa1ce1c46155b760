"""The room of a working directory, judged by git's own repositories where git is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.board.rooms import room_of, room_of_remote
from meshllm.core.board.entries import MAX_ROOM_BYTES

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(*words: str, at: Path) -> None:
    """Run git without the user's configuration."""
    options = ["-c", "protocol.file.allow=always", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *options, *words], cwd=at, check=True, capture_output=True, env=environment)


@pytest.mark.parametrize(
    ("url", "room"),
    [
        ("https://github.com/Owner/Name.git", "owner/name"),
        ("https://github.com/owner/name", "owner/name"),
        ("https://github.com/owner/name/", "owner/name"),
        ("https://user:s3cret-pass@github.com:8443/owner/name.git", "owner/name"),
        ("https://ghp_abcdefghij@github.com/owner/name.git", "owner/name"),
        ("ssh://git@github.com:22/owner/name.git", "owner/name"),
        ("ssh://git@[::1]:22/owner/name.git", "owner/name"),
        ("git@github.com:owner/name.git", "owner/name"),
        ("github.com:owner/name", "owner/name"),
        ("git@[::1]:owner/name.git", "owner/name"),
        ("git@host:name.git", "name"),
        ("git://host/~user/name.git", "user/name"),
        ("https://gitlab.com/group/sub/name.git", "sub/name"),
        ("https://dev.azure.com/org/project/_git/name", "project/name"),
        ("git@ssh.dev.azure.com:v3/org/project/name", "project/name"),
        ("https://host/owner/name.git?token=abc#x", "owner/name"),
        ("file:///srv/secret/name.git", "name"),
        ("/home/someone/name.git", "name"),
        ("../name", "name"),
        ("C:\\work\\name.git", "name"),
        ("/srv/name/.git", "name"),
        ("https://host/ow\x1b[31mner/na me\n.git", "ow-31mner/na-me"),
        ("https://host/", ""),
        ("", ""),
        ("https://host/../..", ""),
    ],
)
def test_rooms_of_remotes(url: str, room: str) -> None:
    assert room_of_remote(url) == room


@given(st.text(max_size=400))
def test_rooms_are_bounded_and_clean(text: str) -> None:
    room = room_of_remote(text)
    assert len(room.encode()) <= MAX_ROOM_BYTES
    assert room.isprintable()
    assert room == room.strip()


def test_no_room_outside_a_repository(tmp_path: Path) -> None:
    assert room_of(tmp_path) == ""
    assert room_of(tmp_path / "missing") == ""
    (tmp_path / ".git").mkdir()  # git does not take it for one either
    assert room_of(tmp_path) == ""
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / ".git").write_text("gitdir: \x00nowhere")
    assert room_of(tmp_path / "file") == ""


@needs_git
def test_room_of_a_checkout_and_of_folders_below_it(tmp_path: Path) -> None:
    git("init", "-q", "checkout", at=tmp_path)
    checkout = tmp_path / "checkout"
    below = checkout / "src" / "deep"
    below.mkdir(parents=True)
    assert room_of(below) == "checkout"
    git("remote", "add", "fork", "git@host:me/fork.git", at=checkout)
    assert room_of(below) == "me/fork"
    git("remote", "add", "origin", "https://u:p@host/owner/name.git", at=checkout)
    git("remote", "set-url", "--push", "origin", "git@host:other/place.git", at=checkout)
    assert room_of(below) == "owner/name"


@needs_git
@pytest.mark.parametrize("remote", [True, False])
def test_room_of_a_worktree_is_that_of_its_repository(tmp_path: Path, remote: bool) -> None:
    git("init", "-q", "main-checkout", at=tmp_path)
    checkout = tmp_path / "main-checkout"
    git("commit", "-q", "--allow-empty", "-m", "first", at=checkout)
    if remote:
        git("remote", "add", "origin", "git@host:owner/name.git", at=checkout)
    git("worktree", "add", "-q", str(tmp_path / "elsewhere"), at=checkout)
    assert room_of(tmp_path / "elsewhere") == ("owner/name" if remote else "main-checkout")
    git("clone", "-q", "--bare", str(checkout), str(tmp_path / "shared.git"), at=tmp_path)
    git("remote", "remove", "origin", at=tmp_path / "shared.git")
    git("worktree", "add", "-q", str(tmp_path / "of-bare"), at=tmp_path / "shared.git")
    assert room_of(tmp_path / "of-bare") == "shared"


@needs_git
def test_room_of_a_submodule_is_its_own(tmp_path: Path) -> None:
    git("init", "-q", "part", at=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "first", at=tmp_path / "part")
    git("init", "-q", "whole", at=tmp_path)
    whole = tmp_path / "whole"
    git("remote", "add", "origin", "git@host:owner/whole.git", at=whole)
    git("submodule", "add", "-q", str(tmp_path / "part"), "libs/part", at=whole)
    assert room_of(whole / "libs" / "part") == "part"
    git("remote", "set-url", "origin", "ssh://git@host:2222/owner/part", at=whole / "libs" / "part")
    assert room_of(whole / "libs" / "part") == "owner/part"
    git("remote", "remove", "origin", at=whole / "libs" / "part")
    assert room_of(whole / "libs" / "part") == "part"


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ('[remote "origin"]\n\turl = git@host:owner/name.git ; a comment\n', "owner/name"),
        ('[remote "origin"] url = "https://host/owner/name#x" # c\n', "owner/name"),
        ('[REMOTE "origin"]\nURL=https://host/owner/\\\nname\n', "owner/name"),
        ('[remote "a\\"b"]\nurl = git@host:owner/name\n', "owner/name"),
        ('[branch "origin"]\nurl = git@host:not/this\n[remote "origin"]\nurl = git@host:owner/name\n', "owner/name"),
        ('[remote "x"]\nurl =\n[remote "y"]\nurl = git@host:owner/name\n', "owner/name"),
        ("\xff\x00[[[broken", "place"),
    ],
)
def test_forms_of_the_configuration(tmp_path: Path, config: str, room: str) -> None:
    place = tmp_path / "place"
    (place / ".git").mkdir(parents=True)
    (place / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (place / ".git" / "config").write_text(config, encoding="latin-1")
    assert room_of(place) == room


def test_huge_and_odd_files_are_bounded(tmp_path: Path) -> None:
    place = tmp_path / "p\x1blace"
    (place / ".git").mkdir(parents=True)
    (place / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    with (place / ".git" / "config").open("wb") as file:
        file.truncate(1 << 32)
    assert room_of(place) == "p-lace"
    (place / ".git" / "config").unlink()
    (place / ".git" / "config").mkdir()
    assert room_of(place) == "p-lace"
