"""The skill `mesh-blackboard`: valid by the standard's validator, installed without a loss, undone to the byte."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from meshllm.agents.journal import Journal
from meshllm.agents.skill import SKILL, SKILL_FILE, apply_skill, plan_skill, skill_text, undo_skill
from meshllm.board.mcp_tools import TOOLS as TOOL_LIST
from scripts.client_trials.trial import NotInstalled, Trial

TOOLS = {"blackboard_post", "blackboard_feed", "blackboard_search", "blackboard_claim"}
OLD, NEW = b"---\nname: mesh-blackboard\n---\nold\n", b"---\nname: mesh-blackboard\n---\nnew\n"


class User:
    """A home with the folders of Claude Code, and what is installed there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.copy = self.home / ".agents/skills" / SKILL / SKILL_FILE
        self.link = self.home / ".claude/skills" / SKILL
        self._mesh = folder / "mesh"
        self._mesh.mkdir()

    def install(self, content: bytes = NEW) -> list[tuple[str, bool]]:
        """What each step says, and whether its place was kept."""
        journal = Journal(self._mesh)
        steps = plan_skill(self.home, [self.link.parent], journal, content)
        return [(step.text, step.kept) for step in apply_skill(steps, journal, content)]

    def undo(self) -> list[bool]:
        """Whether nothing is left, for each place."""
        return [result.done for result in undo_skill(Journal(self._mesh))]

    def look(self) -> dict[str, str]:
        """Everything in the home."""
        return {
            str(path.relative_to(self.home)): (
                f"link {path.readlink()}" if path.is_symlink() else path.read_text() if path.is_file() else "folder"
            )
            for path in sorted(self.home.rglob("*"))
        }


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_skill_is_what_the_standard_asks_for() -> None:
    text = skill_text().decode()
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    front = yaml.safe_load(head)
    assert front["name"] == SKILL
    assert set(front) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert 0 < len(front["description"]) <= 1024
    assert len(front["compatibility"]) <= 500
    assert all(isinstance(value, str) for value in front["metadata"].values())
    assert len(text.splitlines()) <= 120
    assert {tool for tool, _ in tools_named(body)} == TOOLS


def tools_named(text: str) -> list[tuple[str, list[str]]]:
    """The tools in `text` as it writes them, `name {argument, other: value}`: name and arguments."""
    found = re.findall(r"`(blackboard_[a-z]+)(?: \{([^}]*)\})?`", text)
    return [(tool, [one.partition(":")[0].strip() for one in given.split(",") if one]) for tool, given in found]


def test_skill_names_arguments_that_the_tools_have() -> None:
    by_name = {tool["name"]: tool["inputSchema"]["properties"] for tool in TOOL_LIST}
    assert set(by_name) == TOOLS
    for tool, arguments in tools_named(skill_text().decode()):
        assert set(arguments) <= set(by_name[tool]), tool
    for tool, properties in by_name.items():
        named = {argument for name, given in tools_named(skill_text().decode()) if name == tool for argument in given}
        assert named == set(properties), tool


def test_skill_is_valid_by_the_validator_of_the_standard(tmp_path: Path) -> None:
    judge = Trial("skills-ref", "pip", ("skills-ref==0.1.1",))
    try:
        judge.install()
    except NotInstalled as error:
        if error.away:
            pytest.skip("skills-ref cannot be installed: its registry cannot be reached")
        raise
    folder = tmp_path / SKILL
    folder.mkdir()

    def judged(text: bytes) -> subprocess.CompletedProcess[str]:
        (folder / SKILL_FILE).write_bytes(text)
        program = judge.programs / "agentskills"
        return subprocess.run([program, "validate", folder], capture_output=True, text=True, check=False)

    found = judged(skill_text())
    assert found.returncode == 0, found.stdout + found.stderr
    assert judged(skill_text().replace(b"name: mesh-blackboard", b"name: Other")).returncode != 0


@pytest.mark.parametrize("populated", [True, False])
def test_installed_once_and_undone_to_the_byte(user: User, populated: bool) -> None:
    if populated:
        for folder in (user.home / ".claude/skills/mine", user.home / ".agents/skills/other"):
            folder.mkdir(parents=True)
            (folder / SKILL_FILE).write_text("mine")
    before = user.look()
    assert not any(kept for _, kept in user.install())
    assert user.copy.read_bytes() == NEW
    assert user.link.readlink() == user.copy.parent
    assert (user.link / SKILL_FILE).read_bytes() == NEW
    assert user.install() == [("is up to date.", False)] * 2
    assert user.undo() == [True, True]
    assert user.look() == before
    assert user.undo() == []


def test_own_older_copy_is_upgraded_and_a_changed_one_kept(user: User) -> None:
    user.install(OLD)
    assert user.install() == [("upgraded.", False), ("is up to date.", False)]
    assert user.copy.read_bytes() == NEW
    user.copy.write_bytes(NEW + b"my own rule\n")
    said = user.install(OLD)
    assert said[0][1]
    assert "was changed since mesh-llm wrote it" in said[0][0]
    assert user.copy.read_bytes() == NEW + b"my own rule\n"
    assert user.undo() == [True, False]
    assert user.copy.read_bytes() == NEW + b"my own rule\n"
    user.copy.unlink()
    assert user.undo() == [True]
    assert user.look() == {".agents": "folder", ".agents/skills": "folder", f".agents/skills/{SKILL}": "folder"}


def test_copy_that_was_removed_is_written_again(user: User) -> None:
    user.install()
    user.copy.unlink()
    assert user.install()[0] == ("written.", False)
    assert user.undo() == [True, True]
    assert user.look() == {}


def test_folder_of_the_user_is_kept_and_nothing_linked_to_it(user: User) -> None:
    user.copy.parent.mkdir(parents=True)
    (user.copy.parent / "notes.md").write_text("mine")
    before = user.look()
    said = user.install()
    assert said == [("exists, and mesh-llm did not write it: it is kept. Move it away first.", True)]
    assert user.look() == before
    assert user.undo() == []


def test_folder_or_link_of_the_user_in_place_of_the_link_is_kept(user: User, tmp_path: Path) -> None:
    user.link.mkdir(parents=True)
    (user.link / SKILL_FILE).write_text("mine")
    assert [kept for _, kept in user.install()] == [False, True]
    assert (user.link / SKILL_FILE).read_text() == "mine"
    assert user.undo() == [True]
    (user.link / SKILL_FILE).unlink()
    user.link.rmdir()
    user.link.symlink_to(tmp_path / "elsewhere")
    assert [kept for _, kept in user.install()] == [False, True]
    assert user.link.readlink() == tmp_path / "elsewhere"


def test_link_that_the_user_changed_is_not_undone(user: User, tmp_path: Path) -> None:
    user.install()
    user.link.unlink()
    user.link.symlink_to(tmp_path)
    assert user.undo() == [True, True]
    assert user.link.readlink() == tmp_path
    assert not user.copy.exists()


def test_shared_folder_of_skills_needs_no_link(user: User) -> None:
    shared = user.home / "dotfiles/skills"
    shared.mkdir(parents=True)
    for name in (".agents", ".claude"):
        (user.home / name).mkdir()
        (user.home / name / "skills").symlink_to(shared)
    before = user.look()
    assert [text for text, _ in user.install()] == ["written.", "is the same folder."]
    assert (shared / SKILL / SKILL_FILE).read_bytes() == NEW
    assert user.undo() == [True]
    assert user.look() == before


def test_second_copy_where_links_cannot_be_made(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise OSError("no privilege")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert user.install(OLD)[1] == ("written: no link can be made there.", False)
    assert (user.link / SKILL_FILE).read_bytes() == OLD
    assert user.install()[1] == ("upgraded.", False)
    assert user.undo() == [True, True]
    assert user.look() == {}


def test_journal_is_kept_across_a_failure(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed between the journal and the file leaves nothing that undo does not know."""

    def killed(*given: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshllm.agents.user_files.replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        user.install()
    monkeypatch.undo()
    assert user.undo() == [True]
    assert not user.copy.exists()
