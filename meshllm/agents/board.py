"""Whether the node that an agent uses has a blackboard."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass

from meshllm.agents.node import NodeAddress, get_answer
from meshllm.util.format import printable_message

FACTS_PATH = "/api/blackboard/facts"
# `web.console.endpoints.TOKEN_HEADER`, whose folder this one does not know.
TOKEN_HEADER = "x-mesh-llm-token"
UNREACHABLE = "The node belongs to another MESH_LLM_HOME."
NONE_THERE = "The version of the node has none."
# What a node says until it has opened its blackboard, and how long that is waited for.
STARTING = "starting"
STARTING_SECONDS = 5.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class BoardState:
    """Whether a node's blackboard can be used, and if not, why (a sentence)."""

    enabled: bool
    reason: str = ""


def board_state(node: NodeAddress) -> BoardState:
    """The state of the blackboard of `node`, for its owner, once it has started; never raises."""
    if not node.console or not node.token:
        return BoardState(False, UNREACHABLE)
    deadline = time.monotonic() + STARTING_SECONDS
    while not (state := _state(node)).enabled and STARTING in state.reason and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return state


def _state(node: NodeAddress) -> BoardState:
    try:
        status, body, _ = get_answer(node.console, FACTS_PATH, {TOKEN_HEADER: node.token})
        facts = json.loads(body) if status == 200 else {}
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        return BoardState(False, f"It does not answer: {printable_message(str(error)) or type(error).__name__}.")
    if not isinstance(facts, dict) or not isinstance(facts.get("enabled"), bool):
        return BoardState(False, NONE_THERE)
    return BoardState(facts["enabled"], printable_message(str(facts.get("reason") or "")))
