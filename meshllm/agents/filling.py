"""Fills the placeholders of a description with the values of this launch, and writes the contents of files. Pure."""

from __future__ import annotations

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
_UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class Values:
    """What the placeholders stand for. `folders`: home, config, folder and those of the agent. `key`: the key of the
    node, empty if it needs none. `models`: all that an agent could use; `model` is the chosen one."""

    base: str
    model: AgentModel
    models: Sequence[AgentModel]
    folders: Mapping[str, str]
    key: str = field(default="", repr=False)

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
        }


def fill(value: Any, values: Values) -> Any:
    """`value` with its placeholders filled. A text that needs an unknown value is left out, with its key. A text that
    is nothing but a placeholder becomes the value itself: "{context}" is a number. None if nothing is left."""
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
            entries |= _fill(value[EACH_IN_MAP], values, values.of(model))
        return entries
    pairs = {_text(key, by_name): _fill(one, values, by_name) for key, one in value.items()}
    return {str(key): one for key, one in pairs.items() if one is not _UNKNOWN and key is not _UNKNOWN}


def _text(text: str, by_name: Mapping[str, Any]) -> Any:
    if any(by_name[name] is None for name, _ in PLACEHOLDER.findall(text)):
        return _UNKNOWN
    whole = PLACEHOLDER.fullmatch(text)
    if whole is not None and not whole.group(2):
        return by_name[whole.group(1)]
    return PLACEHOLDER.sub(lambda found: str(by_name[found.group(1)]), text)


def written(content: Any, form: str) -> str:
    """The text of a file with this content. YAML is written as JSON, which is YAML as well."""
    if form != "toml":
        return json_text.dump(content) + "\n"
    text = toml_text.dump(content)
    if tomllib.loads(text) != content:
        raise InternalError("A TOML file would not say what it should.")
    return text
