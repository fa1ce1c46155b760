"""Whether the node that an agent uses has a blackboard."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

from meshllm.agents.node import NodeAddress, get_answer
from meshllm.util.format import printable_message

FACTS_PATH = "/api/blackboard/facts"
# `web.console.endpoints.TOKEN_HEADER`, whose folder this one does not know.
TOKEN_HEADER = "x-mesh-llm-token"
UNREACHABLE = "this node belongs to another MESH_LLM_HOME"
NONE_THERE = "its version has none"


@dataclass(frozen=True, slots=True)
class BoardState:
    """Whether a node's blackboard can be used, and if not, why."""

    enabled: bool
    reason: str = ""


def board_state(node: NodeAddress) -> BoardState:
    """The state of the blackboard of `node`, for its owner; never raises."""
    if not node.console or not node.token:
        return BoardState(False, UNREACHABLE)
    try:
        status, body, _ = get_answer(node.console, FACTS_PATH, {TOKEN_HEADER: node.token})
        facts = json.loads(body) if status == 200 else {}
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        return BoardState(False, f"it does not answer: {printable_message(str(error)) or type(error).__name__}")
    if not isinstance(facts, dict) or not isinstance(facts.get("enabled"), bool):
        return BoardState(False, NONE_THERE)
    return BoardState(facts["enabled"], printable_message(str(facts.get("reason") or "")))
