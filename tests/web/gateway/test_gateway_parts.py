"""Parts of the web room on their own: queues, callers, backends' URLs and lists."""

from __future__ import annotations

import asyncio
import string
from urllib.parse import urlsplit

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from web_rig import Call, Upstream

from meshllm.core.records import ModelLoad
from meshllm.core.routing.routes import Target, TargetKind, TargetOffer
from meshllm.errors import BadBackend
from meshllm.web.gateway import backends
from meshllm.web.gateway import target as admission
from meshllm.web.gateway.backends import MAX_MODELS, MAX_NAME, check_url, list_models, parse_models
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.access_control import AccessPolicy, host_of, is_loopback
from meshllm.web.http.client import UpstreamAddress, UpstreamPool

# Text of the kind that breaks readers of URLs and of authorities.
TRICKY = st.text(st.sampled_from("localhost.evil:/@[]?#\\%0127 \t\n\x00\xffé²:…٠"), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


# -- callers


@given(TRICKY | st.text())
@example("[::1]x")
@example("[::1]:")
@example("localhost:²")
def test_host_of_accepts_any_text(text: str) -> None:
    host = host_of(text)
    assert host in text
    assert "]" not in host or not text.startswith("[")


@given(TRICKY | st.text())
@example("localhost.evil.com")
@example("evil-localhost")
@example("1.127.0.0.1")
@example("127.0.0.1.")
@example("0x7f.1")
@example("::ffff:8.8.8.8")
def test_is_loopback_accepts_unambiguous_names_only(text: str) -> None:
    if is_loopback(text):
        plain = text.strip("[]").rstrip(".").lower().partition("%")[0]
        assert (
            plain == "localhost"
            or plain.endswith(".localhost")
            or plain.startswith("127.")
            or set(plain) <= set("0123456789abcdef:.")
        )


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("::1", True),
        ("[::1]", True),
        ("127.9.9.9", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_is_loopback_addresses(host: str, near: bool) -> None:
    assert is_loopback(host) is near


HEADERS = st.dictionaries(
    st.sampled_from([b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key"]),
    st.binary(max_size=30)
    | st.sampled_from([b"localhost", b"Bearer k3y", b"k3y", b"http://localhost", b"http://evil.com", b"cross-site"]),
)


@given(
    HEADERS,
    st.sampled_from(["", "127.0.0.1", "::1", "192.168.1.7", "fe80::1%eth0"]),
    st.sampled_from([None, "", "k3y"]),
)
def test_access_policy_never_admits_remote_callers_without_a_key(
    headers: dict[bytes, bytes], peer: str, key: str | None
) -> None:
    refusal = AccessPolicy(key).judge(peer, headers).refusal
    if refusal is not None:
        assert refusal.status in (401, 403)
        assert refusal.message
        return
    here = headers.get(b"host", b"").decode("latin-1").strip("[]").lower()
    local = (peer == "" or is_loopback(peer)) and ("localhost" in here or here.startswith(("127.", "::1", "[::1]")))
    known = bool(key) and b"k3y" in (headers.get(b"authorization", b""), headers.get(b"x-api-key"), b"k3y")
    assert local or known
    origin = headers.get(b"origin")
    assert origin is None or urlsplit(origin.decode("latin-1")).hostname is not None


@given(st.text())
def test_allows_origin_accepts_any_text(origin: str) -> None:
    assert AccessPolicy().allows_origin(origin) in (True, False)


# -- URLs of backends


@given(
    TRICKY.map("http://localhost".__add__)
    | TRICKY.map("https://".__add__)
    | st.text()
    | st.text(st.sampled_from(string.printable), max_size=30).map("http://box".__add__)
)
@example("http://ёлка.local")
@example("http://[::1]x/")
@example("http://a:99999")
@example("http://localhost:0")
@example("https://[v1.x]/")
@example("http://localhost:")
def test_accepted_backend_url_is_usable(text: str) -> None:
    try:
        url = check_url(text)
    except BadBackend:
        return
    address = UpstreamAddress.of(Target(TargetKind.BACKEND, url))
    head = f"POST {address.prefix}/v1/x HTTP/1.1\r\nhost: {address.authority}\r\n\r\n".encode("latin-1")
    assert head.count(b"\r\n") == 3
    assert head.count(b" ") == 3
    assert head.isascii()
    assert address.host
    assert 0 < address.port < 65536
    assert check_url(url) == url
    assert "@" not in urlsplit(url).netloc


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://localhost:1234/v1", "http://localhost:1234"),
        ("http://localhost:1234/v1/", "http://localhost:1234"),
        ("https://api.example.com/openai/v1", "https://api.example.com/openai"),
        ("http://192.168.1.7:8000", "http://192.168.1.7:8000"),
        ("http://box.lan/", "http://box.lan"),
        ("http://[fd00::1]:80", "http://[fd00::1]:80"),
    ],
)
def test_backend_url_forms(given: str, wanted: str) -> None:
    assert check_url(given) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:1234",
        "ftp://localhost",
        "http://",
        "http://user:secret@localhost",
        "http://localhost/v1?x=1",
        "http://localhost/#x",
        "http://api.example.com",
        "http://8.8.8.8",
        "http://a b",
        "http://a\r\nx",
        "http://localhost:99999",
        "http://[::1",
        "http://" + "x" * 70,
        "http://a..local",
    ],
)
def test_backend_url_errors_have_advice(text: str) -> None:
    with pytest.raises(BadBackend) as raised:
        check_url(text)
    assert raised.value.advice
    assert "secret" not in str(raised.value)


# -- lists of models


@given(JSON.map(orjson.dumps) | st.binary() | JSON.map(lambda data: orjson.dumps({"data": data})))
@example(b'{"data": {"id": "m"}}')
@example(b'{"data": "abc"}')
@example(b'{"data": ["abc"]}')
@example(b'{"data": [[]]}')
@example(b'{"data": null}')
def test_parse_models_accepts_any_bytes(body: bytes) -> None:
    try:
        names = parse_models(body)
    except BadBackend:
        return
    assert len(names) <= MAX_MODELS
    assert len(set(names)) == len(names)
    assert all(0 < len(name) <= MAX_NAME and name.isprintable() for name in names)


def test_parse_models_names() -> None:
    cards = [{"id": "a"}, {"id": "b/c"}, {"id": "a"}, {"id": ""}, {"id": 7}, {"id": "x\ny"}, {"id": "x" * 513}]
    assert parse_models(orjson.dumps({"data": cards})) == ("a", "b/c")
    assert len(parse_models(orjson.dumps({"data": [{"id": str(n)} for n in range(3000)]}))) == MAX_MODELS


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_list_models_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "MAX_LIST_BYTES", 1000)
    seen: list[bytes] = []

    async def script(call: Call) -> None:
        seen.append(call.head)
        kind = call.path.split("/")[1]
        if kind == "good":
            call.answer({"data": [{"id": "m"}]})
        elif kind == "key":
            call.answer(b"", 401)
        elif kind == "moved":
            call.answer(b"", 302, more="location: http://evil.com/\r\n")
        elif kind == "big":
            call.answer(b" " * 5000 + b'{"data": []}')
        elif kind == "garbage":
            call.send(b"\x00\r\n\r\n")
            call.hang_up()
        elif kind == "hangup":
            call.hang_up()
        else:
            await call.gone()

    upstream = Upstream(script)
    url = await upstream.backend()
    try:
        assert await list_models(f"{url}/good", "k3y") == ("m",)
        assert b"\r\nauthorization: Bearer k3y\r\n" in seen[-1]
        await list_models(f"{url}/good", None)
        assert b"authorization" not in seen[-1].lower()
        for kind in ("key", "moved", "big", "garbage", "hangup", "silent"):
            if kind == "silent":
                monkeypatch.setattr(backends, "PROBE_SECONDS", 0.05)
            with pytest.raises(BadBackend):
                await list_models(f"{url}/{kind}", None)
    finally:
        await upstream.die()
    with pytest.raises(BadBackend, match=r"^connection failed: Connection refused$"):
        await list_models(url, None)


# -- desks


class _Waiter:
    """Somebody in a queue."""

    def __init__(self) -> None:
        self.had = 0

    def slot_granted(self, desk: TargetQueue) -> None:
        self.had += 1


@given(st.lists(st.sampled_from(["take", "join", "leave", "release"]), max_size=200), st.integers(1, 4), st.randoms())
def test_target_queue_never_exceeds_its_slots_nor_loses_a_waiter(steps: list[str], slots: int, random) -> None:  # type: ignore[no-untyped-def]
    loop = asyncio.new_event_loop()
    try:
        target = Target(TargetKind.ENGINE, "/x", 1, slots)
        desk = TargetQueue(target, UpstreamPool(target, loop))
    finally:
        loop.close()
    line: list[_Waiter] = []
    held = 0
    for step in steps:
        if step == "take":
            took = desk.take()
            assert took == (held < slots and not line)
            held += took
        elif step == "join" and held == slots:
            waiter = _Waiter()
            if desk.join(waiter):
                assert desk.position(waiter) == len(line)
                line.append(waiter)
            else:
                assert len(line) == desk.queue_limit
        elif step == "leave" and line:
            desk.leave(line.pop(random.randrange(len(line))))
        elif step == "release" and held:
            desk.release(random.random())
            if line:
                assert line.pop(0).had == 1
            else:
                held -= 1
        assert (desk.active, desk.waiting) == (held, len(line))
        assert all(waiter.had == 0 for waiter in line)
        assert 1 <= desk.retry_after() <= 60
    assert desk.queue_limit >= admission.QUEUE_MIN


async def test_report_that_was_on_its_way_does_not_count_a_request_that_has_ended() -> None:
    target = Target(TargetKind.PEER, "ab" * 32, slots=1, model="m")
    queue = TargetQueue(target, UpstreamPool(target, asyncio.get_running_loop()))

    def report(active: int) -> None:
        queue.update(TargetOffer(target, load=ModelLoad("m", active, 0)))

    report(0)
    assert queue.take()
    queue.release(1.0)
    report(1)  # made while ours was active
    assert queue.free
    report(1)  # another node's
    assert not queue.free
    report(0)
    assert queue.free
