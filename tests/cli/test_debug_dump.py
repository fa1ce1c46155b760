"""`mesh-llm debug dump`: complete, and without any secret."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from meshllm.cli import debug_bundle, entry
from meshllm.cli.debug_bundle import Redactor, secrets_of
from meshllm.core.membership.certificates import ALL_RIGHTS
from meshllm.core.records import BootstrapAddress, MeshId, PeerAddress
from meshllm.errors import EnvironmentFailure
from meshllm.net.identity import Identity
from meshllm.wire.mesh.invite import Invite, InviteTerms, encode
from tests.daemons import daemon

WAY = BootstrapAddress(b"p" * 16, (PeerAddress("127.0.0.1", 9),))
TERMS = InviteTerms(b"serial--", ALL_RIGHTS, (1 << 32) - 1, 99)
INVITE = encode(
    Invite(
        MeshId(b"m" * 16), b"the key of a one", TERMS, (BootstrapAddress(b"p" * 16, (PeerAddress("127.0.0.1", 9),)),)
    )
)
API_KEY = "an-api-key-of-ours-0123456789"
BACKEND_KEY = "backendkey9876543210"
HF_TOKEN = "hf_AbCdEfGhIjKlMnOp"


def contents(path: Path) -> dict[str, str]:
    """The bundle's files by name."""
    with tarfile.open(path) as archive:
        found = {}
        for entry_ in archive.getmembers():
            file = archive.extractfile(entry_)
            assert file is not None
            found[entry_.name.removeprefix("mesh-llm-debug/")] = file.read().decode()
        return found


def test_dump_of_a_running_node_contains_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    secret_environment = {
        "HF_TOKEN": HF_TOKEN,
        "SOME_API_KEY": BACKEND_KEY,
        "MESH_LLM_MODELS": str(tmp_path / "models"),
        "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path),
    }
    for name, value in secret_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MESH_LLM_API_KEY", raising=False)
    monkeypatch.setenv("MESH_LLM_HOME", str(home))
    home.mkdir(mode=0o700)
    (home / "api-key").write_text(API_KEY + "\n")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("a-plain-token-without-prefix")
    output = tmp_path / "dump.tar.gz"
    arguments = ["--listen-all", "--backend", "http://127.0.0.1:9,key=SOME_API_KEY", "--verbose"]
    with daemon(home, *arguments, environment=secret_environment) as node:
        node.wait_for(lambda line: line["event"] == "invite", "the mesh of this node")
        mesh_secret = bytes.fromhex(json.loads((home / "mesh.json").read_text())["private"])
        # What a careless line could have written.
        with (home / "logs" / "engine.log").open("a") as log:
            log.write(f"joined with {INVITE} and {API_KEY}, {mesh_secret.hex()}, from 9.9.9.9 at {tmp_path}/x\n")
            log.write(f"{base64.b64encode(mesh_secret).decode()} and Authorization: Bearer {BACKEND_KEY}\n")
        private_key = "".join((home / "node-key").read_text().splitlines()[1:-1])
        done = CliRunner().invoke(entry.app, ["debug", "dump", "--output", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    files = contents(output)
    assert {
        "README.txt", "version.json", "environment.json", "engine.json", "config.json", "doctor.json", "status.json",
        "metrics.txt", "logs/daemon.log", "logs/engine.log",
    } <= set(files)  # fmt: skip
    everything = json.dumps(files) + done.output.replace(str(output), "OUTPUT")
    secrets = [
        INVITE, API_KEY, BACKEND_KEY, HF_TOKEN, "a-plain-token-without-prefix", mesh_secret.hex(), private_key,
        base64.b64encode(mesh_secret).decode().rstrip("="), "9.9.9.9", str(tmp_path),
    ]  # fmt: skip
    assert [secret for secret in secrets if secret in everything] == []
    assert "mesh2-[redacted]" in files["logs/engine.log"]
    assert "public-ip-" in files["logs/engine.log"]
    assert "mesh-llm started" in json.loads(files["config.json"])["started"]
    assert "secret" not in json.loads(files["config.json"])["mesh.json"]
    assert "HF_TOKEN" in json.loads(files["environment.json"])
    assert "aioquic" in json.loads(files["version.json"])["packages"]
    for name in files:
        assert name in done.output
    assert "can be shared" in done.output
    assert output.stat().st_mode & 0o777 == 0o600


async def test_collect_without_a_running_node_keeps_what_there_is(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    (tmp_path / "mesh.json").write_text("{damaged")
    files = await debug_bundle.collect(tmp_path, {"HOME": "/"})
    assert "no node is running" in files["errors.txt"].decode()
    assert "status.json" not in files
    assert json.loads(files["config.json"])["mesh.json"] == {}


def test_redactor_replaces_public_addresses_consistently(tmp_path: Path) -> None:
    redactor = Redactor(frozenset(), "/home/me")
    text = redactor("8.8.8.8 and [2001:4860:4860::8888]:4433, again 8.8.8.8; 192.168.1.7, ::1, 127.0.0.1, /home/me/x")
    assert text == "public-ip-1 and [public-ip-2]:4433, again public-ip-1; 192.168.1.7, ::1, 127.0.0.1, ~/x"
    assert redactor("at 12:34:56 version 1.2.3") == "at 12:34:56 version 1.2.3"
    assert redactor("8.8.8.8") == "public-ip-1"


def test_secrets_of_finds_the_secrets_of_a_home(tmp_path: Path) -> None:
    (tmp_path / "mesh.json").write_text(json.dumps({"private": "0f" * 16}))
    (tmp_path / "api-key").write_text(API_KEY)
    found = secrets_of(tmp_path, {"MY_TOKEN": "0123456789", "PATH": "/usr/bin", "HOME": str(tmp_path), "A_KEY": "abc"})
    assert {"0f" * 16, API_KEY, "0123456789"} <= found
    assert not {"/usr/bin", "abc"} & found


def test_write_refuses_an_existing_file(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    path = tmp_path / "there"
    path.touch()
    with pytest.raises(EnvironmentFailure, match="cannot be written") as caught:
        debug_bundle.write(path, {"a": b"b"}, datetime.now(UTC))
    assert "--output" in caught.value.advice
    assert list(tmp_path.iterdir()) == [path]
