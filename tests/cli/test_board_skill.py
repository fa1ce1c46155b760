"""`mesh-llm blackboard install-skill` as a process."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from meshllm.agents.description import known_agents
from meshllm.agents.journal import JOURNAL_FILE
from meshllm.agents.skill import SKILL, SKILL_FILE, skill_text
from meshllm.cli.blackboard import app
from tests.agents.fake_agent import install, run


def commands_named(text: str) -> list[list[str]]:
    """The words behind `mesh-llm blackboard` of each command in `text`."""
    return [shlex.split(found) for found in re.findall(r"`mesh-llm blackboard ?([^`]*)`", text)]


def test_skill_names_commands_that_exist() -> None:
    command = typer.main.get_command(app)
    found = commands_named(skill_text().decode())
    used = set()
    for words in found:
        context = command.make_context("blackboard", list(words))
        name = next(iter([*context._protected_args, *context.args]), "")
        if name:
            sub = command.get_command(context, name)  # type: ignore[attr-defined]
            assert sub is not None, words
            used.add(name)
            sub.make_context(name, [*context._protected_args, *context.args][1:], parent=context)
    assert used == {"claim", "renew", "release", "claims", "retract"}
    with pytest.raises(Exception, match="No such option"):
        command.make_context("blackboard", ["--no-such-option"])


def test_command_installs_says_and_undoes(tmp_path: Path) -> None:
    env = install(tmp_path / "bin")
    home = tmp_path / "bin/home"
    words = ("blackboard", "install-skill")
    copy, link = home / ".agents/skills" / SKILL / SKILL_FILE, home / ".claude/skills" / SKILL
    shown = run(env, *words, "--dry-run")
    assert shown.stdout.splitlines() == [f"{copy} would be written.", f"{link} would be linked to {copy.parent}."]
    assert not list(home.iterdir())
    done = run(env, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{copy} written.", f"{link} linked to {copy.parent}."]
    assert copy.read_bytes() == skill_text()
    assert run(env, *words, "--agent", "qwen").returncode == 0
    assert (home / ".qwen/skills" / SKILL / SKILL_FILE).read_bytes() == skill_text()
    assert run(env, *words, "--undo").returncode == 0
    assert not list(home.iterdir())
    assert run(env, *words, "--undo").stdout == "The skill was not installed by mesh-llm.\n"
    assert run(env, *words, "--agent", "nobody").returncode == 2
    assert run(env, *words, "--agent", "aider").returncode == 2
    assert run(env, *words, "--undo", "--dry-run").returncode == 2
    copy.parent.mkdir(parents=True)
    kept = run(env, *words)
    assert kept.returncode == 1
    assert f"{copy.parent} exists, and mesh-llm did not write it" in kept.stderr


@pytest.mark.parametrize("name", sorted(name for name, agent in known_agents().items() if agent.skills))
def test_each_agent_gets_the_skill_where_it_looks(name: str, tmp_path: Path) -> None:
    env = install(tmp_path / "bin")
    home = tmp_path / "bin/home"
    assert run(env, "blackboard", "install-skill", "--agent", name).returncode == 0
    folder = known_agents()[name].skills[0].format(home=home, claude=home / ".claude")
    assert (Path(folder) / SKILL / SKILL_FILE).read_bytes() == skill_text()
    assert (tmp_path / "bin/mesh/agents" / JOURNAL_FILE).exists()
    assert name != "continue" or not (Path(folder) / SKILL).is_symlink()  # it follows none
    assert run(env, "blackboard", "install-skill", "--undo").returncode == 0
    assert not list(home.iterdir())
