"""The descriptions of agents, and how their placeholders are filled."""

from __future__ import annotations

import json
import tomllib

import pytest

from meshllm.agents.description import known_agents, read_agent
from meshllm.agents.filling import AGENT_KEY_VARIABLE, NO_KEY, Values, fill, written
from meshllm.cli import entry
from meshllm.core.routing.agent_choice import AgentModel
from meshllm.errors import InternalError

FOLDERS = {"home": "/h", "config": "/h/.config", "folder": "/m/agents/x"}
TINY, UNKNOWN = AgentModel("org/tiny", 8192), AgentModel("big")
VALUES = Values("http://127.0.0.1:1", TINY, (TINY, UNKNOWN), FOLDERS)
MINIMAL = (
    'name="x"\ntitle="X"\nsite=""\nprograms=["x"]\nversion=[]\ninstall=""\nprompt_tokens=0\nmeasured=""\ntried=""\n'
)


def test_commands_are_those_of_the_descriptions() -> None:
    assert sorted(known_agents()) == sorted(entry.AGENTS)
    assert all(name == agent.name for name, agent in known_agents().items())


@pytest.mark.parametrize(
    "wrong",
    [
        '[launch]\nargv=["{modell}"]',
        "[launch]\nnothing=1",
        "more=1\n[launch]",
        '[[launch.files]]\npath="x"\nformat="json"',
        '[[launch.files]]\npath="x"\nformat="ini"\ncontent={}',
        '[launch.env]\n"{x}"="1"',
    ],
)
def test_wrong_description_is_refused(wrong: str) -> None:
    assert read_agent(MINIMAL + "[launch]").launch.argv == ()
    with pytest.raises(InternalError, match="description of the agent x"):
        read_agent(MINIMAL + wrong)


def test_placeholders_keep_their_type_and_unknown_values_leave_their_key_out() -> None:
    content = {
        "context": "{context}",
        "text": "{context!s}",
        "key": "{key}",
        "of": "{key_variable}",
        "{model}": ["{output}"],
    }
    assert fill(content, VALUES) == {"context": 8192, "text": "8192", "key": NO_KEY, "org/tiny": [2048]}
    secret = Values("http://127.0.0.1:1", UNKNOWN, (UNKNOWN,), FOLDERS, "s3cret")
    assert fill(content, secret) == {"key": "s3cret", "of": AGENT_KEY_VARIABLE, "big": []}
    assert fill(["--context={context}", "--model", "{model}"], secret) == ["--model", "big"]
    assert fill({"needs": "{needs_key}"}, VALUES) == {"needs": False}


def test_lists_and_maps_have_an_entry_for_each_model() -> None:
    entry_of = {"id": "{model}", "context": "{context}"}
    assert fill({"$list": entry_of}, VALUES) == [{"id": "org/tiny", "context": 8192}, {"id": "big"}]
    assert fill({"$map": {"{model}": {"context": "{context}"}}}, VALUES) == {"org/tiny": {"context": 8192}, "big": {}}


def test_files_say_what_their_content_says() -> None:
    content = {"a": 'quote " and \\ and é', "n": 1, "on": True, "l": ["x", 2.5], "t": {"u.v": {"w": "x"}, "k": 0}}
    assert tomllib.loads(written(content, "toml")) == content
    assert json.loads(written(content, "json")) == content
    assert json.loads(written(content, "yaml")) == content


@pytest.mark.parametrize("name", sorted(entry.AGENTS))
def test_key_of_the_node_is_no_argument(name: str) -> None:
    agent = known_agents()[name]
    folders = FOLDERS | dict.fromkeys(agent.folders, "/h/x")
    secret = Values("http://127.0.0.1:1", TINY, (TINY,), folders, "s3cret")
    assert not any("s3cret" in str(argument) for argument in fill(list(agent.launch.argv), secret))
