"""The page's files: content security policy, caching, the text without a build, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from web_rig import OWNER, TOKEN, Caller, Response, request

from meshllm.core.snapshot import Snapshot
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.web.console.page_files import FOLDER, PageFiles
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.http.access_control import AccessPolicy

ROOT = Path(__file__).resolve().parents[3]
ASSET = "/assets/index-abc_123.js"


def status() -> NodeStatus:
    """A status whose API is on port 9337."""
    inputs = StatusInputs(
        snapshot=Snapshot(),
        name="box",
        version="1",
        pid=1,
        api="http://localhost:9337/v1",
        console="",
        started=0.0,
    )
    return node_status(inputs, 1.0)


async def invitation(wish: InviteWish) -> Invitation:
    """An invite."""
    return Invitation("mesh2-SECRET", 0)


class PageServer:
    """A console that serves a page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(AccessPolicy(), status, invitation, PageFiles(folder), token=TOKEN)

    async def start(self) -> None:
        """Listen."""
        self.port = await self.console.start(("127.0.0.1",), 0)

    async def call(self, data: bytes) -> Response:
        """One request on a connection of its own."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        caller.send(data)
        try:
            return await caller.response(data.partition(b" ")[0].decode())
        finally:
            await caller.close()

    async def get(self, path: str, **headers: str) -> Response:
        """GET."""
        return await self.call(request("GET", path, headers=headers))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PageServer]:
    """A built page."""
    folder = tmp_path / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>x</title>")
    for name in ("index-abc_123.js", "a.css", "b.woff2", "c.svg", "licences.txt", "d.exe", ".hidden.js"):
        (folder / "assets" / name).write_text(f"this is {name}")
    (tmp_path / "secret.txt").write_text("SECRET")
    (folder / "secret.js").write_text("SECRET")
    made = PageServer(folder)
    await made.start()
    yield made
    await made.console.close()


async def test_page_policy_allows_only_this_daemon(server: PageServer) -> None:
    response = await server.get("/")
    assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["font-src"] == "'self'"
    assert policy["connect-src"] == "'self' http://localhost:9337"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_page_policy_names_no_ipv6_address(server: PageServer) -> None:
    """Browsers ignore a policy with an IPv6 address."""
    policy = PageFiles(server.folder).index("http://[fd00::2]:9337").headers["content-security-policy"]
    assert "connect-src 'self';" in policy
    assert "fd00" not in policy


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("index-abc_123.js", "text/javascript; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("b.woff2", "font/woff2"),
        ("c.svg", "image/svg+xml"),
        ("licences.txt", "text/plain; charset=utf-8"),
    ],
)
async def test_page_assets_are_immutable(server: PageServer, name: str, kind: str) -> None:
    response = await server.get(f"/assets/{name}")
    assert (response.status, response.headers["content-type"]) == (200, kind)
    assert response.body == f"this is {name}".encode()
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["content-security-policy"] == "default-src 'none'"
    assert (await server.call(request("HEAD", f"/assets/{name}"))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/assets/d.exe", "/assets/.hidden.js", "/assets/", "/assets/nothing.js", "/assets/../secret.js", "/secret.js",
        "/assets/..%2fsecret.js", "/assets/%2e%2e/secret.js", "/assets/..%2f..%2fsecret.txt", "/assets/a.css/",
        "/assets//etc/passwd", "/assets/%00.js", "/assets/a.css%00.js", "/index.html", "/assets/" + "a" * 300 + ".js",
    ],
)  # fmt: skip
async def test_page_serves_no_other_files(server: PageServer, path: str) -> None:
    response = await server.get(path)
    assert response.status in (400, 404)
    assert b"SECRET" not in response.body
    assert b"this is" not in response.body


async def test_page_serves_no_oversized_file(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.console.page_files.MAX_FILE_BYTES", 10)
    assert (await server.get(ASSET)).status == 404
    assert b"is not built yet" in (await server.get("/")).body
    failed = server.folder.with_name(f"{server.folder.name}.failed")
    failed.touch()
    told = (await server.get("/")).body
    assert b"could not be built" in told
    assert b".venv/console.log" in told
    assert b"<code>scripts/console</code>" in told
    failed.unlink()


async def test_page_is_refused_for_other_origins(server: PageServer) -> None:
    for path in ("/", ASSET, "/api/openapi.json"):
        assert (await server.get(path, Origin="https://example.org")).status == 403
        assert (await server.call(request("GET", path, host="example.org"))).status == 403


async def test_page_without_a_build_explains_how_to_build_it(server: PageServer) -> None:
    index = server.folder / "index.html"
    built = index.read_text()
    index.unlink()
    response = await server.get("/")
    assert response.status == 200
    for words in (b"scripts/console", b"http://localhost:9337", b"/api/status", b'http-equiv="refresh"'):
        assert words in response.body
    index.write_text(built)
    assert (await server.get("/")).body == built.encode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Cookie": "of=another-port"}, 200),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "https://localhost", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
async def test_invite_is_given_only_to_the_console_page(
    server: PageServer, headers: dict[str, str], status: int
) -> None:
    data = request("POST", "/api/invite", {}, {**OWNER, **headers})
    response = await server.call(data)
    assert response.status == status
    assert (b"SECRET" in response.body) == (status == 200)
    # And not even to that one without the token.
    response = await server.call(request("POST", "/api/invite", {}, headers))
    assert (response.status, b"SECRET" in response.body) == (403, False)


async def test_openapi_document_lists_all_endpoints(server: PageServer) -> None:
    described = (await server.get("/api/openapi.json")).json
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/api/status",
        "/api/events",
        "/api/requests",
        "/api/invite",
        "/api/invites",
        "/api/invites/revoke",
        "/api/members",
        "/api/members/expel",
        "/api/mesh/rotate-key",
        "/api/node/rotate-key",
        "/api/key",
        "/api/downloads",
        "/api/attach",
        "/api/models/load",
        "/api/models/drop",
        "/api/models/library",
        "/api/blackboard/post",
        "/api/blackboard/feed",
        "/api/blackboard/search",
        "/api/blackboard/claim",
        "/api/blackboard/claims",
        "/api/blackboard/rooms",
        "/api/blackboard/facts",
        "/api/blackboard/retract",
        "/api/blackboard/preview",
        "/api/blackboard/notice",
        "/api/openapi.json",
    }
    schemas = described["components"]["schemas"]
    assert set(schemas["NodeStatus"]["required"]) == set((await server.get("/api/status")).json)
    text = json.dumps(described)
    references = {text[at:].split('"', 1)[0] for at in _all(text, "#/components/schemas/")}
    assert {reference.rpartition("/")[2] for reference in references} <= set(schemas)


def _all(text: str, what: str) -> list[int]:
    found, at = [], text.find(what)
    while at >= 0:
        found.append(at)
        at = text.find(what, at + 1)
    return found


def test_page_types_match_the_openapi_document() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "console_types.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_page_packages_are_pinned_by_hash_without_a_registry() -> None:
    lock = json.loads((ROOT / "console" / "package-lock.json").read_text())
    packages = {name: facts for name, facts in lock["packages"].items() if name}
    assert all(facts.get("integrity", "").startswith("sha512-") for facts in packages.values())
    assert not [name for name, facts in packages.items() if "resolved" in facts]


def test_wheel_contains_the_built_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["meshllm"]
    inside = FOLDER.relative_to(ROOT / "meshllm").as_posix()
    assert {f"{inside}/*.html", f"{inside}/assets/*"} <= set(patterns)
