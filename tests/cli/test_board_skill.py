"""`mesh-llm blackboard install-skill` as a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshllm.agents.description import known_agents
from meshllm.agents.journal import JOURNAL_FILE
from meshllm.agents.skill import SKILL, SKILL_FILE, skill_text
from tests.agents.fake_agent import install, run


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
    assert os.access(Path(folder) / SKILL / SKILL_FILE, os.R_OK)
