"""The blackboard of a running node, as its owner calls it over HTTP."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any
from urllib.parse import urlencode

from tests.daemons import OPEN_WAIT_SECONDS
from tests.netlab.nodes import Node


def call(node: Node, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
    """The answer of a node's console to its owner."""
    if query:
        path += f"?{urlencode(query)}"
    headers = {**node.owner, "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{node.console_url}/api/blackboard/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def post(node: Node, text: str, **fields: Any) -> str:
    """Post; the id."""
    return str(call(node, "post", {"text": text, **fields})["post"]["id"])


def texts(node: Node) -> list[str]:
    """The texts that a node shows, oldest first."""
    page = call(node, "feed", limit=500)
    return [each["text"] for each in reversed(page["posts"])]


def until_shown(node: Node, text: str, *, gone: bool = False) -> None:
    """Wait until a node shows that text, or shows it no more."""
    end = time.monotonic() + OPEN_WAIT_SECONDS
    while time.monotonic() < end:
        page = call(node, "feed", limit=500)
        if (text in [each["text"] for each in page["posts"]]) is not gone:
            return
        call(node, "feed", after=page["cursor"], wait_seconds=1)
    raise AssertionError(f"{text!r} does not come or go: {texts(node)}")
