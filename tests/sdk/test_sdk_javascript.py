"""The JavaScript SDKs of OpenAI, Anthropic and Vercel accept every stream of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.daemons import Daemon

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.parametrize("api", ["chat", "messages", "responses", "vercel"])
def test_streams_with_a_split_first_character(
    served: Daemon, address: str, run_js: Callable[..., dict[str, Any]], streams: int, api: str
) -> None:
    found = run_js(address, served.model, api, "emoji", streams)
    assert found == {"api": api, "kind": "emoji", "total": streams, "failed": 0, "failures": {}}


@pytest.mark.parametrize("api", ["chat", "messages", "responses", "vercel"])
def test_streams_with_tool_calls(served: Daemon, address: str, run_js: Callable[..., dict[str, Any]], api: str) -> None:
    found = run_js(address, served.model, api, "tools", 4)
    assert found == {"api": api, "kind": "tools", "total": 4, "failed": 0, "failures": {}}
