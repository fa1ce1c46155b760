"""Access is denied by default: an unknown peer address and proxy headers make a caller remote."""

from __future__ import annotations

from pathlib import Path

import pytest
from web_rig import ask, bench

from meshllm.web.http.access_control import PROXY_HEADERS, AccessPolicy, is_local

LOCAL = {b"host": b"localhost:9337"}
HEADERS = sorted(name.decode() for name in PROXY_HEADERS)


def test_is_local_needs_a_known_loopback_address_and_host() -> None:
    assert is_local("127.0.0.1", LOCAL)
    assert is_local("::1", {b"host": b"[::1]:9337"})
    assert not is_local("", LOCAL)
    assert not is_local("192.0.2.9", LOCAL)
    assert not is_local("127.0.0.1", {b"host": b"example.org"})
    assert not is_local("127.0.0.1", {})


@pytest.mark.parametrize("key", [None, "key"])
def test_caller_without_an_address_is_refused(key: str | None) -> None:
    refusal = AccessPolicy(key).judge("", LOCAL).refusal
    assert refusal is not None
    assert refusal.status == (403 if key is None else 401)


@pytest.mark.parametrize("header", HEADERS)
def test_is_local_is_false_behind_a_proxy(header: str) -> None:
    assert not is_local("127.0.0.1", {**LOCAL, header.encode(): b""})


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
async def test_api_needs_a_key_behind_a_proxy_on_this_machine(folder: Path, header: str) -> None:
    async with bench(folder, AccessPolicy("key")) as table:
        engine = await table.serve()
        assert (await table.call(ask(headers={header: "192.0.2.1"}))).status == 401
        assert not engine.calls
        headers = {header: "192.0.2.1", "Authorization": "Bearer key"}
        assert (await table.call(ask(headers=headers))).status == 200


async def test_api_without_a_key_refuses_a_proxy_and_says_why(folder: Path) -> None:
    async with bench(folder) as table:
        response = await table.call(ask(headers={"X-Forwarded-For": "192.0.2.1"}))
    assert (response.status, response.json["error"]["code"]) == (403, "host_not_allowed")
    assert "proxy" in response.json["error"]["message"]


async def test_require_key_asks_local_callers_too(folder: Path) -> None:
    async with bench(folder, AccessPolicy("key", require_key=True)) as table:
        await table.serve()
        assert (await table.call(ask())).status == 401
        assert (await table.get("/health")).status == 401
        assert (await table.call(ask(headers={"Authorization": "Bearer key"}))).status == 200
