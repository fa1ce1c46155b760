"""Descriptions of coding agents: one TOML file per agent in `known/`, read and checked here.

A description says how an agent is found, and two setups: `launch`, for one run of it, and `write`, for the user's own
files, so that the agent finds the mesh when it is started without mesh-llm. The code knows the kinds of steps only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from meshllm.errors import InternalError

# What a text in braces stands for; alone in a text it keeps its type, unless `!s` (as text) or `!j` (as JSON) follows.
# `folder`: the agent's own folder in MESH_LLM_HOME; `base`: the node's URL, `api`: with /v1; `key`: what the agent
# sends as its key; `key_variable`: the variable with the key, unknown if the node needs none (`needs_key` is then
# false); `model`, `context`, `output`: the chosen model and its limits in tokens, within $list and $map each model.
# Known where the agent gets the blackboard: `board_server`, a table with the `command`, `args` and `env` of its MCP
# server on stdio; `board_program`, `board_arguments`, `board_command` (both in one list), `board_environment`,
# `board_home`: its parts; `board_line`, all in one line; `board_claude_peek` and so on: the command of a hook, for a
# shell; `board_peek_command`: the same for pi, as a list.
PLACEHOLDERS = frozenset(
    {"home", "config", "folder", "base", "api", "key", "key_variable", "needs_key", "model", "context", "output"}
    | {"board_server", "board_program", "board_arguments", "board_command", "board_environment", "board_home"}
    | {"board_line", "board_claude_peek", "board_codex_peek", "board_qwen_peek", "board_peek_command"}
)
FORMATS = ("json", "toml", "yaml", "text")
# A list, or a mapping, with an entry for each model that an agent can use.
EACH_IN_LIST, EACH_IN_MAP = "$list", "$map"
PLACEHOLDER = re.compile(r"\{(\w+)(!s|!j)?\}")


@dataclass(frozen=True, slots=True)
class Merge:
    """`value` is added at the path `at` of a file. `volatile`: members of it that the agent writes itself."""

    at: tuple[str, ...]
    value: Any
    volatile: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileStep:
    """A file of an agent. `paths`: the first that exists is meant, else the first. `content`: the whole of a file that
    mesh-llm owns; None for a file of the user, to which `merges` are added, and which begins as `initial` if there is
    none. `neighbours`: the agent loads nothing from the folder if another file in it cannot be parsed."""

    paths: tuple[str, ...]
    format: str
    content: Any = None
    merges: tuple[Merge, ...] = ()
    initial: Any = None
    neighbours: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """What points an agent at the node: variables that are set and removed, arguments, and files. `command`: the
    arguments where the user gives none. `last`: arguments behind those of the user, where these begin with one of
    `last_for`. `run`: how the user starts an agent whose files are written."""

    env: Mapping[str, str]
    unset: tuple[str, ...]
    argv: tuple[str, ...]
    files: tuple[FileStep, ...]
    command: tuple[str, ...] = ()
    run: str = ""
    last: tuple[str, ...] = ()
    last_for: tuple[str, ...] = ()

    def with_more(self, more: Setup) -> Setup:
        """This setup and `more`: tables of the same variable or file become one, and the arguments of `more` stand
        before the others, which may end with a list."""
        files = list(self.files)
        for step in more.files:
            same = next((at for at, own in enumerate(files) if own.paths == step.paths), None)
            if same is None:
                files.append(step)
            else:
                content = None if step.content is None else _joined(files[same].content, step.content)
                merges = (*files[same].merges, *step.merges)
                files[same] = replace(files[same], content=content, merges=merges)
        return replace(
            self,
            env=_joined(self.env, more.env),
            unset=(*self.unset, *more.unset),
            argv=(*more.argv, *self.argv),
            files=tuple(files),
            last=(*self.last, *more.last),
            last_for=(*self.last_for, *more.last_for),
        )


def _joined(one: Any, other: Any) -> Any:
    """Two values as one: tables by their keys, else `other`."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return other
    return {**one, **{key: _joined(one[key], value) if key in one else value for key, value in other.items()}}


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent. `programs`: names in PATH, or paths, tried in this order. `folders`: further placeholders: (variable,
    default). `prompt_tokens`: the tokens of its tools and instructions, of the version `measured` (0: unknown);
    `tried`: the version that was started with these settings. `notes`: what a user should know. `skills`: where it
    looks for skills of the user, if it does; `skill_links`: whether it
    follows links there. `board`: what `launch` needs besides for the blackboard,
    `board_write` what `write` needs; None if the agent takes no MCP server there."""

    name: str
    title: str
    site: str
    programs: tuple[str, ...]
    version: tuple[str, ...]
    install: str
    prompt_tokens: int
    measured: str
    tried: str
    folders: Mapping[str, tuple[str, str]]
    launch: Setup
    write: Setup | None
    notes: tuple[str, ...]
    skills: tuple[str, ...]
    skill_links: bool
    board: Setup | None
    board_write: Setup | None


@cache
def known_agents() -> Mapping[str, Agent]:
    """All agents by name."""
    files = sorted(resources.files("meshllm.agents").joinpath("known").iterdir(), key=lambda file: file.name)
    found = [read_agent(file.read_text(encoding="utf-8")) for file in files if file.name.endswith(".toml")]
    return {agent.name: agent for agent in found}


def read_agent(text: str) -> Agent:
    """The description in `text`. Raises InternalError for a wrong one: it is part of the package."""
    data = tomllib.loads(text)
    name = str(data.get("name"))
    try:
        folders = {key: (value["variable"], value["default"]) for key, value in data.pop("folders", {}).items()}
        known = PLACEHOLDERS | set(folders)
        write = data.pop("write", None)
        if write is not None and write.pop("launch_files", False):
            write["files"] = deepcopy(data["launch"]["files"])
        board, board_write = data.pop("board", None), data.pop("board_write", None)
        agent = Agent(
            launch=_setup(data.pop("launch"), known),
            write=None if write is None else _setup(write, known),
            folders=folders,
            programs=tuple(data.pop("programs")),
            version=tuple(data.pop("version")),
            notes=tuple(data.pop("notes", ())),
            skills=tuple(data.pop("skills", ())),
            skill_links=bool(data.pop("skill_links", True)),
            board=None if board is None else _setup(board, known),
            board_write=None if board_write is None else _setup(board_write, known),
            **data,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(f"The description of the agent {name} is wrong: {error!r}.") from error
    return agent


def _setup(data: dict[str, Any], known: frozenset[str] | set[str]) -> Setup:
    _check(data, known)
    files = tuple(_file(file) for file in data.pop("files", ()))
    unset, argv = tuple(data.pop("unset", ())), tuple(data.pop("argv", ()))
    command, last, last_for = (tuple(data.pop(name, ())) for name in ("command", "last", "last_for"))
    env = data.pop("env", {})
    return Setup(env, unset, argv, files, command, last=last, last_for=last_for, **data)


def _file(data: dict[str, Any]) -> FileStep:
    path = data.pop("path")
    merges = tuple(
        Merge(tuple(merge["at"]), merge["value"], tuple(merge.get("volatile", ()))) for merge in data.pop("merge", ())
    )
    if data["format"] not in FORMATS or ("content" in data) == bool(merges):
        raise ValueError(f"{path}: a file has a format, and either content or merges")
    return FileStep(paths=(path,) if isinstance(path, str) else tuple(path), merges=merges, **data)


def _check(value: Any, known: frozenset[str] | set[str]) -> None:
    """Raise ValueError for a placeholder that nothing stands for."""
    if isinstance(value, str):
        for name, _ in PLACEHOLDER.findall(value):
            if name not in known:
                raise ValueError(f"unknown placeholder {name}")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check(key, known)
            _check(one, known)
    elif isinstance(value, list):
        for one in value:
            _check(one, known)
