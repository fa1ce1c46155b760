"""`mesh-llm blackboard install-skill`: teaches coding agents to use the blackboard."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from meshllm import paths
from meshllm.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from pathlib import Path

# Looks nowhere else than in its own folder, and is used most.
LINKED_ALWAYS = "claude"


def install_skill(
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="For this agent alone, such as 'claude' or 'qwen'.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Remove what was installed.")] = False,
) -> None:
    """Install the skill 'mesh-blackboard' for coding agents.

    A copy in ~/.agents/skills, and a link to it for Claude Code. Skills of yours and changes to this one are kept.
    """
    from pathlib import Path

    from meshllm.agents import skill
    from meshllm.agents.journal import Journal
    from meshllm.agents.launcher import AGENTS_FOLDER, locked

    if undo and (agent is not None or dry_run):
        raise UsageError("--undo excludes --agent and --dry-run.", advice="Give --undo alone: it removes all places.")
    if undo:
        with locked(paths.home()) as folder:
            results = skill.undo_skill(Journal(folder))
        for result in results:
            typer.echo(f"{result.path} {result.text}", err=not result.done)
        if not results:
            typer.echo("The skill was not installed by mesh-llm.")
        if not all(result.done for result in results):
            raise EnvironmentFailure("The skill is still there.", advice="The places are named above.")
        return
    content = skill.skill_text()
    folders, links = _folders(agent)
    if dry_run:
        journal = Journal(paths.home() / AGENTS_FOLDER)
        steps = skill.plan_skill(Path.home(), folders, journal, content, links=links)
    else:
        with locked(paths.home()) as folder:
            journal = Journal(folder)
            steps = skill.plan_skill(Path.home(), folders, journal, content, links=links)
            steps = skill.apply_skill(steps, journal, content)
    for step in steps:
        would = dry_run and (step.change is not None or step.target is not None)
        typer.echo(f"{step.path} {'would be ' if would else ''}{step.text}", err=step.kept)
    if any(step.kept for step in steps):
        raise EnvironmentFailure("The skill is not installed everywhere.", advice="The places are named above.")


def _folders(agent: str | None) -> tuple[list[Path], bool]:
    """Where a link, or (False) a copy, is needed besides ~/.agents/skills. Raises UsageError for an agent that is
    unknown or reads no skills."""
    from pathlib import Path

    from meshllm.agents.description import known_agents
    from meshllm.agents.launcher import Launcher
    from meshllm.agents.skill import SHARED_FOLDER

    agents = known_agents()
    found = agents.get(agent or LINKED_ALWAYS)
    if found is None:
        raise UsageError(f"No agent is called {agent!r}.", advice=f"Agents: {', '.join(agents)}.")
    if not found.skills:
        raise UsageError(f"{found.title} reads no skills.", advice="Tell it of 'mesh-llm blackboard' yourself.")
    folders = Launcher(found, paths.home(), os.environ).skill_folders()
    return [folder for folder in folders if folder != Path.home() / SHARED_FOLDER], found.skill_links
