"""New sessions of an agent, through a client and two idle hosts with the real engine, find their tools and system
prompt computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from here import client, site

from meshllm import paths
from tests.daemons import MODEL
from tests.netlab.nodes import Status

SESSIONS = 10
RULES = "You are a coding agent. Read files before you change them. " * 30
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Does {name} with a file of the project, and says what came of it.",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
    for name in ("read", "write", "search")
]

pytestmark = pytest.mark.engine


def two_hosts(status: Status) -> bool:
    """Whether two living peers serve the model."""
    peers = (status["mesh"] or {"peers": []})["peers"]
    return sum(MODEL in peer["models"] and peer["status"] == "alive" for peer in peers) == 2


def test_new_sessions_find_their_prefix(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        small = ("--model", MODEL, "--ctx-size", "2048", "--no-speculation", "--threads", "1")
        environment = {"MESH_LLM_MODELS": str(paths.models())}
        one = here.node("one", *small, environment=environment)
        here.node("two", *small, environment=environment, join=one)
        asked = here.node("asked", "--client", join=one)
        asked.until(two_hosts, "two hosts")
        hosts, shares = [], []
        for number in range(SESSIONS):
            reply = client(asked).chat.completions.with_raw_response.create(
                model=MODEL,
                messages=[
                    {"role": "system", "content": RULES},
                    {"role": "user", "content": f"{number}: what is in file {number}?"},
                ],
                tools=TOOLS,  # type: ignore[arg-type]
                tool_choice="auto",
                max_tokens=2,
                extra_body={"metadata": {"user_id": f"session {number}"}},
            )
            usage = reply.parse().usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            hosts.append(reply.headers["x-mesh-llm-host"])
            shares.append((usage.prompt_tokens_details.cached_tokens or 0) / usage.prompt_tokens)
        assert len(set(hosts)) == 1, hosts
        assert shares[0] < 0.1
        assert all(share > 0.9 for share in shares[1:]), shares
