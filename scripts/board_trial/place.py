"""The mesh of the trials: two nodes with a blackboard, and a scripted model behind the first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.board_trial.scripted_model import ANSWER, ASK, READER, Script, scripted_model
from scripts.client_trials.place import run_client
from scripts.client_trials.trial import Trial
from tests.daemons import PROGRAM, Daemon, daemon

WRITER = "anna"
# What each agent needs to run without a person, and to use the tools of MCP servers without asking.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "claude": ("--print", "--allowedTools", "mcp__mesh", "--"),
    "codex": (
        "exec", "--skip-git-repo-check", '--config=mcp_servers.mesh.default_tools_approval_mode="approve"',
        "--dangerously-bypass-hook-trust",
    ),
    "opencode": ("run",),
    "pi": ("--print",),
    "qwen": ("--yolo", "--prompt"),
    "cline": ("--auto-approve", "true"),
    "continue": ("--auto", "--print"),
}  # fmt: skip
# Those with hooks, which are told of messages.
TOLD = ("claude", "codex", "pi", "qwen")
# For a message to reach the other node.
ARRIVE_SECONDS = 30.0
SHOWN = 600
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class BoardOutcome:
    """How it went. `problem`: empty if all is well. `posts`: the messages that came to the other node."""

    problem: str
    seconds: float
    posts: tuple[dict[str, Any], ...] = ()


@dataclass
class BoardPlace:
    """Where the agents are tried: the node of WRITER, and that of READER."""

    folder: Path
    first: Daemon
    second: Daemon
    script: Script

    def ask(self, trial: Trial, seconds: float) -> BoardOutcome:
        """Let an agent on the first node post a question to READER; it must come to the second."""
        text = f"Which tokenizer does {trial.name} need?"
        return self._run(trial, self.first, f"{ASK} {text}", text, self.second, seconds)

    def answer(self, trial: Trial, question: str, seconds: float) -> BoardOutcome:
        """Let an agent on the second node work; told of a question by its hooks, it must answer on the first."""
        text = f"{trial.name} needs none."
        found = self._run(trial, self.second, f"{ANSWER} {text}", text, self.first, seconds)
        if not found.problem and found.posts[0]["reply_to"] != question:
            return BoardOutcome("it answered something else", found.seconds, found.posts)
        return found

    def _run(self, trial: Trial, node: Daemon, prompt: str, text: str, other: Daemon, seconds: float) -> BoardOutcome:
        home = self.folder / "homes" / f"{trial.name}-{node.home.name}"
        home.mkdir(parents=True)
        env = trial.environment(home, {"base": "", "model": ""}) | {"MESH_LLM_HOME": str(node.home)}
        words = [str(PROGRAM), trial.launch[0], "--", *ARGUMENTS[trial.name], prompt]
        begun, talks = time.monotonic(), len(self.script.talks)
        status, said = run_client(words, env, home, home.with_suffix(".txt"), seconds)
        took = round(time.monotonic() - begun, 1)
        end = " ".join(_COLOURS.sub("", said).split())[-SHOWN:]
        if status is None:
            return BoardOutcome(f"no end within {seconds:.0f} s: {end}", took)
        posts = self._arrived(other, text, ARRIVE_SECONDS if status == 0 else 0.0)
        if not posts:
            asked = len(self.script.talks) - talks
            return BoardOutcome(f"no post came (status {status}, {asked} requests to the model): {end}", took)
        return BoardOutcome("" if status == 0 else f"status {status}: {end}", took, posts)

    def _arrived(self, node: Daemon, text: str, seconds: float) -> tuple[dict[str, Any], ...]:
        deadline = time.monotonic() + seconds
        while True:
            with urllib.request.urlopen(node.owner_request("/api/blackboard/feed?room=*&limit=100")) as reply:
                posts = json.loads(reply.read())["posts"]
            found = tuple(post for post in posts if post["text"] == text)
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


@contextmanager
def board_place(folder: Path) -> Iterator[BoardPlace]:
    """The mesh, below `folder`, within the block."""
    none = folder / "none"
    none.mkdir()
    environment = {"MESH_LLM_MODELS": str(none)}
    with (
        scripted_model() as (url, script),
        daemon(folder / "first", "--backend", url, "--name", WRITER, environment=environment) as first,
    ):
        invite = folder / "invite"
        asked = {**os.environ, "MESH_LLM_HOME": str(first.home)}
        invite.write_text(
            subprocess.run([PROGRAM, "invite"], env=asked, check=True, capture_output=True, text=True).stdout
        )
        join = ("--client", "--join", f"@{invite}", "--name", READER)
        with daemon(folder / "second", *join, environment=environment) as second:
            for node in (first, second):
                _until_model(node)
            yield BoardPlace(folder, first, second, script)


def _until_model(node: Daemon) -> None:
    for _ in range(600):
        with urllib.request.urlopen(f"{node.base_url}/models") as reply:
            if json.loads(reply.read())["data"]:
                return
        time.sleep(0.1)
    raise AssertionError(f"the node {node.home.name} knows no model")
