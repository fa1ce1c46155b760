"""Fills the placeholders of a description with the values of this launch, and writes the contents of files. Pure."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshllm.agents import json_text, toml_text
from meshllm.agents.description import EACH_IN_LIST, EACH_IN_MAP, PLACEHOLDER
from meshllm.core.routing.agent_choice import AgentModel
from meshllm.errors import InternalError

# The variable that carries the key of a node that needs one to agents that take the name of a variable.
AGENT_KEY_VARIABLE = "MESH_LLM_AGENT_KEY"
# What agents send to a node that needs no key: most refuse to start without any.
NO_KEY = "mesh"
# The home of the node, for programs that an agent starts.
HOME_VARIABLE = "MESH_LLM_HOME"
_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class BoardAccess:
    """How an agent reaches the blackboard: `words` that start mesh-llm, and the MESH_LLM_HOME of the node."""

    words: tuple[str, ...]
    home: str

    def placeholders(self) -> dict[str, Any]:
        """The values by name. MCP clients pass hardly any variable on: the home is part of each."""
        program, *rest = self.words
        arguments, environment = [*rest, "blackboard", "--mcp"], {HOME_VARIABLE: self.home}
        setting, peek = f"{HOME_VARIABLE}={self.home}", [*self.words, "blackboard", "peek", "--hook"]
        hook = f"{HOME_VARIABLE}={shlex.quote(self.home)} {shlex.join(peek)}"
        return {
            "board_server": {"command": program, "args": arguments, "env": environment},
            "board_program": program,
            "board_arguments": arguments,
            "board_command": [program, *arguments],
            "board_environment": environment,
            "board_home": self.home,
            "board_line": shlex.join([setting, program, *arguments]),
            # A hook that fails, be it that mesh-llm was removed meanwhile, must not hold the agent up.
            "board_claude_peek": f"{hook} claude || true",
            "board_codex_peek": f"{hook} codex || true",
            "board_qwen_peek": f"{hook} qwen || true",
            "board_peek_command": [*peek, "pi"],
        }


NO_BOARD = dict.fromkeys(BoardAccess(("mesh-llm",), "").placeholders())


@dataclass(frozen=True, slots=True)
class Values:
    """What the placeholders stand for. `folders`: home, config, folder and those of the agent. `key`: the key of the
    node, empty if it needs none. `models`: all that an agent could use; `model` is the chosen one. `board`: None for an
    agent without the blackboard."""

    base: str
    model: AgentModel
    models: Sequence[AgentModel]
    folders: Mapping[str, str]
    key: str = field(default="", repr=False)
    board: BoardAccess | None = None

    def of(self, model: AgentModel) -> dict[str, Any]:
        """The values by name, for `model`; None is unknown."""
        return {
            **self.folders,
            "base": self.base,
            "api": f"{self.base}/v1",
            "key": self.key or NO_KEY,
            "key_variable": AGENT_KEY_VARIABLE if self.key else None,
            "needs_key": bool(self.key),
            "model": model.name,
            "context": model.context or None,
            "output": model.output or None,
            **(NO_BOARD if self.board is None else self.board.placeholders()),
        }


def fill(value: Any, values: Values) -> Any:
    """`value` with its placeholders filled. A text that needs an unknown value is left out, with its key, and so is a
    table of nothing but such texts. A text that is nothing but a placeholder becomes the value itself: "{context}" is a
    number. None if nothing is left."""
    filled = _fill(value, values, values.of(values.model))
    return None if filled is _UNKNOWN else filled


def fill_text(text: str, values: Values) -> str:
    """A path or another text whose placeholders are all known."""
    return str(fill(text, values))


def _fill(value: Any, values: Values, by_name: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _text(value, by_name)
    if isinstance(value, list | tuple):
        return [found for one in value if (found := _fill(one, values, by_name)) is not _UNKNOWN]
    if not isinstance(value, dict):
        return value
    if EACH_IN_LIST in value:
        return [_fill(value[EACH_IN_LIST], values, values.of(model)) for model in values.models]
    if EACH_IN_MAP in value:
        entries: dict[str, Any] = {}
        for model in values.models:
            found = {str(_text(key, values.of(model))): one for key, one in value[EACH_IN_MAP].items()}
            filled = {key: _fill(one, values, values.of(model)) for key, one in found.items()}
            # An agent offers the model that has an entry, even if nothing is known of it.
            entries |= {key: {} if one is _UNKNOWN else one for key, one in filled.items()}
        return entries
    pairs = {_text(key, by_name): _fill(one, values, by_name) for key, one in value.items()}
    known = {str(key): one for key, one in pairs.items() if one is not _UNKNOWN and key is not _UNKNOWN}
    return _UNKNOWN if value and not known else known


def _text(text: str, by_name: Mapping[str, Any]) -> Any:
    if any(by_name[name] is None for name, _ in PLACEHOLDER.findall(text)):
        return _UNKNOWN
    whole = PLACEHOLDER.fullmatch(text)
    if whole is not None and not whole.group(2):
        return by_name[whole.group(1)]
    return PLACEHOLDER.sub(lambda found: _as_text(by_name[found.group(1)], found.group(2)), text)


def _as_text(value: Any, form: str | None) -> str:
    return json.dumps(value, ensure_ascii=False) if form == "!j" else str(value)


def written(content: Any, form: str) -> str:
    """The text of a file with this content. YAML is written as JSON, which is YAML as well."""
    if form == "text":
        return str(content)
    if form != "toml":
        return json_text.dump(content) + "\n"
    text = toml_text.dump(content)
    if tomllib.loads(text) != content:
        raise InternalError("A TOML file would not say what it should.")
    return text
