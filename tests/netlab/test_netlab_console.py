"""The console and the API of a node, requested from another machine, with and without `--listen-all` and the key."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.netlab.lab import Host, Lab, missing
from tests.netlab.nodes import PATIENCE, Node, host_model, start

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=f"no network lab: {missing()}"),
    pytest.mark.slow,
]
ROUTES = ("/api/status", "/api/events", "/api/openapi.json", "/api/invite", "/api/key", "/api/nothing", "/nothing")


class Phone:
    """A client on another machine."""

    def __init__(self, host: Host, node: Node) -> None:
        self.host = host
        self.at = node.host.address
        self.console = urlsplit(node.console_url).port or 0
        self.api = urlsplit(node.base_url).port or 0

    def ask(
        self, port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: object = None
    ) -> tuple[int, str]:
        """Status and body; of an endless body what arrives before its first empty line."""
        connection = http.client.HTTPConnection(self.at, port, timeout=PATIENCE)
        connection.sock = self.host.socket(socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(PATIENCE)
            connection.sock.connect((self.at, port))
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers or {}))
            with connection.getresponse() as response:
                if response.getheader("content-type", "").startswith("text/event-stream") and method == "GET":
                    return response.status, b"".join(iter(response.readline, b"\n")).decode()
                return response.status, response.read().decode()
        finally:
            connection.close()


def test_console_answers_another_machine_with_the_key_only(lab: Lab, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link_all(delay=0.002)
    fake = host_model(a, "m")
    node = start(a, tmp_path / "a", "--listen-all", "--backend", fake.url)
    node.until(lambda status: any(backend["healthy"] for backend in status["backends"]), "its backend")
    assert a.address in " ".join(node.status()["lan_urls"])
    key = (tmp_path / "a" / "api-key").read_text().strip()
    phone = Phone(b, node)

    secrets = (key, node.invite(), "mesh1-", str(tmp_path), fake.url)
    # An address that has sent the right key may send it again, whatever else it sends.
    assert phone.ask(phone.console, "GET", "/api/status", {"Authorization": f"Bearer {key}"})[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Host": "evil.example", "Authorization": f"Bearer {key}"}):
        for path in ROUTES:
            for method in ("GET", "POST"):
                status, body = phone.ask(phone.console, method, path, {**node.owner, **headers})
                # After some wrong keys their address is only told that it has sent too many.
                refused = (403,) if "Host" in headers else (401, 429) if headers else (401,)
                assert status in refused, (method, path)
                assert not [secret for secret in secrets if secret in body]
        assert phone.ask(phone.api, "GET", "/v1/models", headers)[0] in ((200,) if "Host" in headers else (401, 429))
    assert phone.ask(phone.console, "GET", "/", {"Host": "evil.example"})[0] == 403

    bearer = {"Authorization": f"Bearer {key}"}
    answers = {path: phone.ask(phone.console, "GET", path, bearer) for path in ("/", *ROUTES)}
    statuses = {path: status for path, (status, _) in answers.items()}
    assert statuses == {
        "/": 200, "/api/status": 200, "/api/events": 200, "/api/openapi.json": 200, "/api/invite": 405, "/api/key": 405,
        "/api/nothing": 404, "/nothing": 404,
    }  # fmt: skip
    for path in ("/api/invite", "/api/key"):
        answers[path] = phone.ask(phone.console, "POST", path, {**node.owner, **bearer})
        assert answers[path][0] == 403
    for path, (_, body) in answers.items():
        assert not [secret for secret in secrets if secret in body], path
    told = json.loads(answers["/api/status"][1])
    assert (told["read_only"], told["pid"]) == (True, 0)
    assert told["api"] == f"http://{a.address}:{phone.api}/v1"
    assert told["mesh"]["addresses"] == told["mesh"]["join_attempts"] == told["lan_urls"] == []

    wish = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    origin = {"Origin": f"http://{a.address}:{phone.console}"}
    status, body = phone.ask(phone.api, "POST", "/v1/chat/completions", {**bearer, **origin}, wish)
    assert (status, "a0 " in body, "[DONE]" in body) == (200, True, True)
    assert phone.ask(phone.api, "POST", "/v1/chat/completions", origin, wish)[0] == 401
    other = {"Origin": f"http://{a.address}:{phone.api}"}
    assert phone.ask(phone.api, "POST", "/v1/chat/completions", {**bearer, **other}, wish)[0] == 403


def test_console_and_api_refuse_another_machine_by_default(lab: Lab, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link_all(delay=0.002)
    node = start(a, tmp_path / "a")
    assert node.status()["lan_urls"] == []
    phone = Phone(b, node)
    for port in (phone.console, phone.api):
        with pytest.raises(ConnectionRefusedError):
            phone.ask(port, "GET", "/")
