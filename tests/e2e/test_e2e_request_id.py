"""A failing request in a mesh of three daemons is explained by its request id and the nodes' logs alone."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from here import Site, serves, site

from tests.daemons import OPEN_WAIT_SECONDS
from tests.netlab.nodes import FakeModel, Node, _Handler

REQUEST_ID = "e2e-request-1"


class _Crashed(_Handler):
    """A proxy before a model server that has crashed."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._json(502, {"error": {"message": "the model server crashed", "code": "bad_gateway"}})


class _OutOfMemory(_Handler):
    """A model server that has no memory left."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._json(503, {"error": {"message": "no GPU memory left", "code": "overloaded"}})


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def host(here: Site, home: str, handler: type[_Handler], join: Node) -> Node:
    """A node whose model `m` fails as `handler` says."""
    fake: FakeModel = here.model("m", home)
    fake.RequestHandlerClass = handler
    node = here.node(home, "--backend", fake.url, join=join)
    node.wait_for(lambda line: line["event"] == "backend" and line["healthy"], "the model")
    return node


def logged(node: Node) -> list[dict[str, Any]]:
    """The records of the request in the node's log, once its access line is there: a thread writes them."""
    deadline = time.monotonic() + OPEN_WAIT_SECONDS
    while True:
        lines = (node.home / "logs" / "daemon.log").read_text().splitlines()
        found = [record for line in lines if (record := json.loads(line)).get("request_id") == REQUEST_ID]
        if any(record["logger"] == "meshllm.access" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_failing_request_is_explained_by_its_request_id(here: Site) -> None:
    gateway = here.node("gateway")
    hosts = [host(here, "one", _Crashed, gateway), host(here, "two", _OutOfMemory, gateway)]
    gateway.until(
        lambda status: sum("m" in peer["models"] for peer in status["mesh"]["peers"]) == 2, "two hosts of the model"
    )
    assert serves("m")(gateway.status())
    ids = [str(node.status()["mesh"]["node"])[:10] for node in (gateway, *hosts)]

    url = urlsplit(gateway.base_url)
    connection = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=OPEN_WAIT_SECONDS)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "SECRET prompt"}]})
    headers = {"content-type": "application/json", "x-request-id": REQUEST_ID}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    error = json.load(response)["error"]
    connection.close()
    assert response.status >= 500
    assert (response.headers["x-request-id"], error["request_id"]) == (REQUEST_ID, REQUEST_ID)

    # The gateway: which nodes it tried, in which order, why each one failed, and how long each attempt took.
    records = logged(gateway)
    [access] = [record for record in records if record["logger"] == "meshllm.access"]
    attempts = [record for record in records if record["logger"] == "meshllm.gateway"]
    assert (access["caller"], access["model"], access["outcome"]) == ("local", "m", "failed")
    assert access["attempts"] == len(attempts) == 2
    assert access["error"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]
    reasons = {attempt["node"]: attempt["error"] for attempt in attempts}
    assert set(reasons) == set(ids[1:])
    assert "the model server crashed" in reasons[ids[1]]
    assert "no GPU memory left" in reasons[ids[2]]
    for attempt in attempts:
        assert attempt["target"] == f"peer {attempt['node']}"
        assert 0 <= attempt["connect_ms"] <= attempt["duration_ms"] <= access["duration_ms"]

    # Each host: that the request came from the gateway's node, what it tried, and why that failed.
    for node, own, reason in zip(hosts, ids[1:], ("the model server crashed", "no GPU memory left"), strict=True):
        records = logged(node)
        [access] = [record for record in records if record["logger"] == "meshllm.access"]
        assert (access["caller"], access["outcome"], access["node"]) == (f"peer {ids[0]}", "failed", own)
        assert access["target"].startswith("backend http://127.0.0.1:")
        assert reason in access["error"]
        failed = [record for record in records if record["logger"] == "meshllm.gateway"]
        assert failed
        assert all(reason in record["error"] and record["duration_ms"] >= 0 for record in failed)

    # `mesh-llm logs --request` shows the same, and no log holds the prompt.
    shown = here.run("gateway", "logs", "--request", REQUEST_ID)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(REQUEST_ID) >= 3
    assert not any("SECRET" in (node.home / "logs" / "daemon.log").read_text() for node in (gateway, *hosts))
