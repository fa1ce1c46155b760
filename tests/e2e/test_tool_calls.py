"""Whether a model calls tools is found out with the real engine, and known in the whole mesh."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meshllm import paths
from meshllm.daemon.tool_call_tests import CACHE_NAME
from tests.daemons import MODEL, Daemon
from tests.e2e.here import Site, site
from tests.netlab.nodes import Node

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Its examples make the small model write calls; alone it writes programs instead.
EXAMPLES = Path(__file__).parents[1] / "engine" / "processes" / "templates" / "call-examples.jinja"


def fact(node: Daemon) -> Any:
    """What the node's list of models says of the model's tool calls; "unknown" if the model is not in it."""
    with urllib.request.urlopen(f"{node.base_url}/models") as reply:
        cards = json.loads(reply.read())["data"]
    return next((card["mesh"]["calls_tools"] for card in cards if card["id"] == MODEL), "unknown")


def start(here: Site, home: str, *arguments: str) -> Node:
    return here.node(
        home, "--model", MODEL, "--ctx-size", "2048", *arguments, environment={"MESH_LLM_MODELS": str(paths.models())}
    )


def has_result(status: dict[str, Any]) -> bool:
    return any(model["engine"] and model["engine"]["calls_tools"] is not None for model in status["models"])


def test_result_is_shown_kept_and_known_to_the_mesh(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        host = start(here, "host", "--chat-template", str(EXAMPLES))
        user = here.node("user", "--client", join=host)
        host.until(has_result, "the test of the model")
        assert fact(host) is True
        user.until(
            lambda status: any(
                served["calls_tools"]
                for peer in (status["mesh"] or {"peers": []})["peers"]
                for served in peer["serves"]
            ),
            "the host's record",
        )
        assert fact(user) is True
        assert list(json.loads((host.home / CACHE_NAME).read_text()).values()) == [True]
        host.stop()
        again = start(here, "host", "--chat-template", str(EXAMPLES))
        again.wait_until_serving()
        assert fact(again) is True  # with the first answer: it is not asked again


def test_model_that_talks_instead_does_not_call(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        host = start(here, "host")
        host.until(has_result, "the test of the model")
        assert fact(host) is False
        host.stop()
        other = start(here, "other", "--tools", f"{MODEL}=yes")
        other.wait_until_serving()
        assert fact(other) is True
        assert not (other.home / CACHE_NAME).exists()
