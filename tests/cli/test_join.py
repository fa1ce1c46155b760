"""`--join` and `mesh-llm invite`: accepted input, messages, and that `ps` shows no invite."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from meshllm.cli import entry, hide_secrets, join, start
from meshllm.cli.invite import seconds
from meshllm.core.membership.certificates import ALL_RIGHTS
from meshllm.core.records import BootstrapAddress, MeshId, PeerAddress
from meshllm.daemon.settings import Settings
from meshllm.errors import BadInvite, EnvironmentFailure, MeshError, NotRunning, UsageError
from meshllm.wire.mesh.invite import Invite, InviteTerms, encode
from tests.daemons import MODEL, PROGRAM, daemon

NOW = 1_800_000_000.0
# Nobody listens at the discard port of this machine.
WAY = BootstrapAddress(b"p" * 16, (PeerAddress("127.0.0.1", 9),))
INVITE = Invite(MeshId(b"m" * 16), b"the key of a one", InviteTerms(b"serial--", ALL_RIGHTS, int(NOW) + 1, 99), (WAY,))
TOKEN = encode(INVITE)
SECOND = replace(INVITE, ways=(BootstrapAddress(b"q" * 16, (PeerAddress("127.0.0.2", 9),)),))
EXPIRED = replace(INVITE, terms=replace(INVITE.terms, expires=int(NOW)))
OTHER_MESH = replace(INVITE, mesh=MeshId(b"o" * 16))


class Terminal(io.StringIO):
    """Standard input with a person at it."""

    def isatty(self) -> bool:
        return True


def read(*options: str, stdin: str = "") -> tuple[Invite, ...]:
    return join.read(list(options), io.StringIO(stdin), NOW)


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's own arguments hold no invite: there is nothing to hide in them."""
    monkeypatch.setattr(sys, "argv", ["mesh-llm"])


# -- what --join takes


def test_join_without_values_gives_no_invites() -> None:
    assert join.read([]) == ()


def test_join_reads_tokens_files_and_standard_input_in_order(tmp_path: Path) -> None:
    file = tmp_path / "invites"
    file.write_text(f"# of the office\n\n  {encode(SECOND)}  # the other one\n{TOKEN}\n")
    third = replace(INVITE, terms=replace(INVITE.terms, expires=int(NOW) + 2))
    assert read(f"@{file}", "-", TOKEN, stdin=encode(third) + "\n") == (SECOND, INVITE, third)


def test_join_drops_repeated_invites() -> None:
    assert read(TOKEN, f" {TOKEN}\n", "-", stdin=TOKEN) == (INVITE,)


def test_join_rejoins_an_invite_broken_over_two_lines(tmp_path: Path) -> None:
    file = tmp_path / "invites"
    file.write_text(f"{TOKEN[:40]}\n{TOKEN[40:]}\n{encode(SECOND)[:-5]}\r\n  {encode(SECOND)[-5:]}\r\n")
    assert read(f"@{file}") == (INVITE, SECOND)


def test_join_prompts_for_one_line_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert join.read(["-"], Terminal(f"{TOKEN}\nwhat else the person types"), NOW) == (INVITE,)
    assert "Paste" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "stdin", "kind", "words"),
    [
        (["hello"], "", BadInvite, "--join: This is not an invite"),
        ([TOKEN, TOKEN[:-1]], "", BadInvite, "--join, number 2: This invite is damaged"),
        (["-"], f"# mine\n{TOKEN}\n{TOKEN[:30]}\n", BadInvite, "standard input, line 3: This invite is damaged"),
        (["-", "-"], TOKEN, UsageError, "once"),
        (["-"], "# nothing\n\n", UsageError, "no invite in standard input"),
        (["@"], "", UsageError, "cannot be read"),
        (["@/no/such/file"], "", UsageError, "No such file"),
        (["@/"], "", UsageError, "directory"),
        (["@a\0b"], "", UsageError, "not a file name"),
        ([encode(EXPIRED)], "", BadInvite, "expired at 2027-01-15 08:00 UTC"),
        ([TOKEN, encode(EXPIRED)], "", BadInvite, "number 2: this invite expired at"),
        ([TOKEN, encode(OTHER_MESH)], "", BadInvite, "different meshes"),
        ([TOKEN.replace("mesh2", "mesh1")], "", BadInvite, "older mesh-llm"),
    ],
)
def test_join_refuses_unusable_invites_with_advice(
    options: list[str], stdin: str, kind: type[MeshError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        read(*options, stdin=stdin)
    assert caught.value.advice
    assert TOKEN[10:25] not in str(caught.value)


def test_join_bounds_file_size_and_number_of_invites(tmp_path: Path) -> None:
    file = tmp_path / "endless"
    file.write_text("x" * (join.MAX_FILE_BYTES + 100))
    with pytest.raises(BadInvite, match="longer"):
        read(f"@{file}")
    many = [replace(INVITE, terms=replace(INVITE.terms, expires=int(NOW) + at)) for at in range(1, 100)]
    file.write_text("".join(f"{encode(invite)}\n" for invite in many))
    with pytest.raises(UsageError, match="More than 64"):
        read(f"@{file}")


# -- the options of a start


def settings_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> Settings:
    """What a command line asks of the daemon."""
    asked: list[Settings] = []

    def run(settings: Settings, **_: Any) -> None:
        asked.append(settings)

    monkeypatch.setattr(start, "run", run)
    result = CliRunner().invoke(entry.app, list(options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return asked[0]


def test_start_options_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings_of(monkeypatch)
    assert (plain.invites, plain.client, plain.bind_port) == ((), False, None)
    assert plain.node_name
    options = [
        "--join",
        TOKEN,
        "--join",
        encode(SECOND),
        "--client",
        "--bind-port",
        "4433",
        "--node-name",
        " den ",
        "--max-clients",
        "3",
    ]
    full = settings_of(monkeypatch, *options)
    assert (full.invites, full.client, full.bind_port) == ((INVITE, SECOND), True, 4433)
    assert (full.node_name, full.max_clients) == ("den", 3)


def test_node_name_drops_control_characters_of_the_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "b\x1b[1mox\u202e.example.org")
    assert settings_of(monkeypatch).node_name == "b[1mox"
    monkeypatch.setattr("platform.node", lambda: "")
    assert settings_of(monkeypatch).node_name == ""


def test_writer_name_is_the_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, "--client", "--blackboard", "--name", " Ann B ").writer_name == "Ann B"
    monkeypatch.setenv("USER", "d\x1b[0m\u202e\u00f6r@corp")
    assert settings_of(monkeypatch).writer_name == "d[0m\u00f6r-corp"
    monkeypatch.setenv("USER", "\u00f6" * 99)
    assert settings_of(monkeypatch).writer_name == "\u00f6" * 32
    monkeypatch.delenv("USER")
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    assert settings_of(monkeypatch).writer_name == "root"

    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert settings_of(monkeypatch).writer_name == ""


def test_blackboard_is_on_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        settings_of(monkeypatch, *options)
        for options in ((), ("--blackboard",), ("--no-blackboard",), ("--blackboard-memory",))
    ]
    assert [(it.blackboard, it.board_memory) for it in found] == [
        (True, False), (True, False), (False, False), (True, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--client", "--model", "x"], "--client and --model"),
        (["--client", "--backend", "http://127.0.0.1:1"], "--client and --backend"),
        (["--node-name", "a\nb"], "--node-name"),
        (["--node-name", "x" * 300], "--node-name"),
        (["--name", "a\nb"], "--name must have"),
        (["--name", "x" * 65], "--name must have"),
        (["--name", "ann@attic"], "--name must have"),
        (["--no-blackboard", "--blackboard-memory"], "--blackboard-memory and --no-blackboard"),
        (["--join", "mesh2-abc"], "damaged"),
    ],
)
def test_start_refuses_options_that_exclude_each_other(options: list[str], words: str) -> None:
    with pytest.raises(MeshError, match=words) as caught:
        CliRunner().invoke(entry.app, options, catch_exceptions=False)
    assert caught.value.advice


def test_settings_repr_hides_invite_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = repr(settings_of(monkeypatch, "--join", TOKEN))
    assert "the key of a one" not in shown
    assert TOKEN not in shown


def test_help_imports_no_heavy_module() -> None:
    for arguments in ([], ["invite"]):
        told = subprocess.run(
            [sys.executable, "-X", "importtime", str(PROGRAM), *arguments, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        imported = {line.rpartition("|")[2].strip().split(".")[0] for line in told.stderr.splitlines()}
        assert "typer" in imported
        assert imported & {"msgpack", "cryptography", "aioquic", "aiohttp", "asyncio"} == set()


# -- what others on the machine can see

LOOK = """
import sys
from meshllm.cli import join
print(len(join.read([word for word in sys.argv[1:] if word.startswith("mesh")])), flush=True)
print(sys.argv, sys.orig_argv, flush=True)
sys.stdin.readline()
"""
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux shows, and lets change, the arguments in /proc"
)


@contextmanager
def looking(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has read its invites and now waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOK, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate("\n", timeout=60)


@needs_linux
def test_join_removes_the_invite_from_the_arguments() -> None:
    with looking("before", TOKEN, "--join=" + TOKEN, "", encode(SECOND), "after") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n"
        held = process.stdout.readline()
        shown = psutil.Process(process.pid).cmdline()
    assert shown[3:] == ["before", "*" * len(TOKEN), "--join=" + "*" * len(TOKEN), "", "*" * len(TOKEN), "after"]
    assert TOKEN not in held
    assert encode(SECOND) not in held


@needs_linux
def test_hide_leaves_other_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("/proc/self/cmdline").read_bytes()
    monkeypatch.setattr(sys, "argv", ["mesh-llm", "--name", "abc", "--join", "b", "--join=b"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "b"])
    assert hide_secrets.hide(["b"])
    assert sys.argv == ["mesh-llm", "--name", "abc", "--join", "*", "--join=*"]
    assert sys.orig_argv == ["python", "*"]
    assert Path("/proc/self/cmdline").read_bytes() == before


def test_join_warns_where_the_arguments_cannot_be_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(values: list[str]) -> bool:
        raise OSError("no /proc here")

    monkeypatch.setattr(hide_secrets, "_overwrite", broken)
    monkeypatch.setattr(sys, "argv", ["mesh-llm", "--join", TOKEN])
    assert read(TOKEN) == (INVITE,)
    told = capsys.readouterr().err
    assert "--join @FILE" in told
    assert TOKEN not in told
    assert sys.argv == ["mesh-llm", "--join", "*" * len(TOKEN)]
    assert read("-", stdin=TOKEN) == (INVITE,)
    assert capsys.readouterr().err == ""


def seen(process: psutil.Process) -> str:
    """What the machine shows of a process: its arguments and its environment."""
    return f"{process.cmdline()} {process.environ()}"


@needs_linux
@pytest.mark.parametrize("form", ["separate", "joined", "file"])
def test_daemon_shows_no_invite_in_its_arguments(tmp_path: Path, form: str) -> None:
    (tmp_path / "invite").write_text(TOKEN)
    arguments = {
        "separate": ["--join", TOKEN],
        "joined": [f"--join={TOKEN}"],
        "file": ["--join", f"@{tmp_path}/invite"],
    }
    with daemon(tmp_path / "home", *arguments[form]) as node:
        shown = [seen(psutil.Process(node.process.pid)), *map(seen, node.children())]
    assert [text for text in shown if TOKEN in text] == []
    assert "--join" in shown[0]
    assert TOKEN not in node.errors + json.dumps(node.lines)


@needs_linux
@pytest.mark.engine
def test_engine_processes_show_no_invite_in_their_arguments(tmp_path: Path) -> None:
    with daemon(tmp_path, "--model", MODEL, "--ctx-size", "512", "--join", TOKEN, "--verbose") as node:
        node.wait_until_serving()
        shown = [seen(process) for process in node.children()]
    assert len(shown) >= 2
    assert [text for text in shown if TOKEN in text] == []
    assert TOKEN not in node.errors + json.dumps(node.lines)


# -- mesh-llm invite


class FakeConsole(HTTPServer):
    """A console that answers every POST with `status` and `answer`, and keeps what was asked."""

    def __init__(self, status: int, answer: bytes) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked.append((self.path, headers, body))
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def console() -> Iterator[Callable[[int, bytes], FakeConsole]]:
    """Makes consoles that are gone after the test."""
    running: list[tuple[FakeConsole, Thread]] = []

    def start(status: int, answer: bytes) -> FakeConsole:
        server = FakeConsole(status, answer)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def ask_invite(server: FakeConsole, *options: str) -> str:
    arguments = ["invite", "--node-port", str(server.server_port), *options]
    result = CliRunner().invoke(entry.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def answer(expires: int = 0) -> bytes:
    return json.dumps({"invite": TOKEN, "expires": expires, "serial": "00"}).encode()


def test_invite_command_prints_the_invite_alone_on_a_line(console: Callable[[int, bytes], FakeConsole]) -> None:
    server = console(200, answer())
    assert ask_invite(server) == TOKEN + "\n"
    path, headers, body = server.asked[0]
    assert (path, json.loads(body)) == (
        "/api/invite",
        {"expires": 0, "rights": [], "once": False, "days": 0, "label": ""},
    )
    assert "x-mesh-llm-token" not in headers, "the token of this user's node is for that node only"


def test_invite_command_asks_for_an_expiry(console: Callable[[int, bytes], FakeConsole]) -> None:
    server = console(200, answer(1_800_007_200))
    told = json.loads(ask_invite(server, "--guest", "--once", "--expires", "2h", "--json"))
    assert told == {"invite": TOKEN, "expires": 1_800_007_200, "serial": "00", "rights": ""}
    asked = json.loads(server.asked[0][2])
    assert (asked["expires"], asked["rights"], asked["once"]) == (7200, ["use"], True)


@pytest.mark.parametrize(
    ("status", "text", "kind", "words"),
    [
        (
            409,
            json.dumps({"error": {"code": "x", "message": "It is a client."}}).encode(),
            EnvironmentFailure,
            "It is a client",
        ),
        (400, json.dumps({"error": {"code": "x", "message": "Odd."}}).encode(), NotRunning, "status 400.*Odd"),
        (404, b"not found", NotRunning, "not a mesh-llm console"),
        (200, b"<html>", NotRunning, "not a mesh-llm console"),
        (200, b"[]", NotRunning, "not a mesh-llm console"),
        (200, b'{"invite": "x", "expires": null}', NotRunning, "not a mesh-llm console"),
    ],
)
def test_invite_command_reports_the_consoles_error(
    console: Callable[[int, bytes], FakeConsole], status: int, text: bytes, kind: type[MeshError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        ask_invite(console(status, text))


def test_invite_command_reports_that_no_node_runs(tmp_path: Path, unused_tcp_port: int) -> None:
    environment = {**os.environ, "MESH_LLM_HOME": str(tmp_path)}
    for options, words in (
        ([], "No mesh-llm is running"),
        (["--node-port", str(unused_tcp_port)], "No mesh-llm answers"),
    ):
        told = subprocess.run(
            [str(PROGRAM), "invite", *options], env=environment, capture_output=True, text=True, check=False
        )
        assert (told.returncode, told.stdout) == (1, "")
        assert words in told.stderr


@pytest.mark.parametrize(
    ("text", "length"),
    [("", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), (" 1 W ", 604_800), ("30d", 2_592_000)],
)
def test_seconds_parses_a_duration(text: str, length: int) -> None:
    assert seconds(text) == length


@pytest.mark.parametrize("text", ["0h", "2", "h", "-1h", "1.5h", "2 hours", "2h30m", "999999999w", "31d", "٣h"])
def test_seconds_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a duration"):
        seconds(text)


@needs_linux
def test_invite_is_hidden_before_the_program_is_imported() -> None:
    code = """
import sys
from meshllm.cli import hide_secrets
hide_secrets.hide_invites()
assert "typer" not in sys.modules and "meshllm.cli.entry" not in sys.modules
print(sys.argv[2] == sys.argv[3].removeprefix("--join="), flush=True)
sys.stdin.read()
"""
    arguments = ["--join", TOKEN, f"--join={TOKEN}", "--name", "mesh1-short"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n", "the program itself still has the invite"
        shown = psutil.Process(process.pid).cmdline()[3:]
    finally:
        process.communicate("", timeout=60)
    stars = "*" * len(TOKEN)
    assert shown == ["--join", stars, f"--join={stars}", "--name", "mesh1-short"]


def test_installed_command_hides_first() -> None:
    import tomllib

    told = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert told["project"]["scripts"] == {"mesh-llm": "meshllm.cli.program:main"}


def test_join_leaves_out_an_expired_invite_of_a_member_and_says_so_once() -> None:
    asked: list[Invite] = []

    def is_member(invite: Invite, now: float) -> bool:
        asked.append(invite)
        return True

    said: list[str] = []
    assert join.read([encode(INVITE)], now_unix=NOW + 9, is_member=is_member, say=said.append) == ()
    (notice,) = said
    assert "expired" in notice
    assert "member already" in notice
    assert asked == [INVITE]
    with pytest.raises(BadInvite, match="expired"):
        join.read([encode(INVITE)], now_unix=NOW + 9)
