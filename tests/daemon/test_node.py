"""The mailbox loop and the claim on a home."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, PeerAddress
from meshllm.core.snapshot import Snapshot
from meshllm.daemon import pidfile
from meshllm.daemon.app import App, Listening, Viewer, backend_keys, find_models
from meshllm.daemon.mesh_state import MeshState
from meshllm.daemon.node_loop import NodeLoop
from meshllm.daemon.pidfile import HomeLock
from meshllm.daemon.settings import Backend, Settings
from meshllm.errors import InvalidModelFile, NotRunning, UnknownModel, UsageError


async def test_events_become_commands_and_snapshots_in_order_until_the_end() -> None:
    seen: list[object] = []
    node = NodeLoop(NodeCore(), lambda snapshot: seen.append(snapshot.version))

    def carry_out(command: c.Command) -> None:
        seen.append(command)
        if isinstance(command, c.FetchModel):
            node.post(e.StopWanted())

    node.post(e.ModelWanted("m"))
    async with asyncio.timeout(10):
        await node.run(carry_out)
    # The snapshot is always published before the commands that go with it are carried out.
    assert seen == [1, c.FetchModel("m"), c.PrepareEngine(), 2]


async def test_what_is_known_at_the_same_time_is_told_at_once() -> None:
    """A caller must not hear that there is no such model because the core has not come to the next letter yet."""
    mailbox: asyncio.Queue[e.Event] = asyncio.Queue()
    for model in ("a", "b", "c"):
        mailbox.put_nowait(e.ModelWanted(model))
    told: list[list[str]] = []
    node = NodeLoop(NodeCore(), lambda snapshot: told.append([model.name for model in snapshot.models]), mailbox)
    asked: list[c.Command] = []

    def carry_out(command: c.Command) -> None:
        asked.append(command)
        if len(asked) == 4:
            node.post(e.StopWanted())

    async with asyncio.timeout(10):
        await node.run(carry_out)
    assert told[0] == ["a", "b", "c"]
    assert asked == [c.FetchModel("a"), c.PrepareEngine(), c.FetchModel("b"), c.FetchModel("c")]


async def test_readers_are_told_of_a_core_to_which_nothing_has_happened() -> None:
    told: list[Snapshot] = []

    def publish(snapshot: Snapshot) -> None:
        told.append(snapshot)
        node.post(e.StopWanted())

    node = NodeLoop(NodeCore(), publish)
    async with asyncio.timeout(10):
        await node.run(lambda command: None)
    assert told[0] == Snapshot()


async def test_a_deadline_of_the_core_comes_by_itself() -> None:
    asked: list[str] = []
    node = NodeLoop(NodeCore(), lambda snapshot: None)

    def carry_out(command: c.Command) -> None:
        assert isinstance(command, c.ProbeBackend)
        asked.append(command.url)
        # Silent the first time: the core wants to ask again after a while, and nothing but time can make it.
        node.post(e.BackendSilent(command.url, "refused") if len(asked) == 1 else e.StopWanted())

    node.post(e.BackendAdded("http://b"))
    async with asyncio.timeout(30):
        await node.run(carry_out)
    assert asked == ["http://b", "http://b"]


def test_a_home_has_one_daemon(tmp_path: Path) -> None:
    claim = HomeLock(tmp_path)
    claim.announce(1, 2)
    found = pidfile.read(tmp_path)
    assert found is not None
    assert (found.pid, found.port, found.console) == (os.getpid(), 1, 2)
    with pytest.raises(UsageError, match="MESH_LLM_HOME"):
        HomeLock(tmp_path)
    claim.release()
    assert pidfile.read(tmp_path) is None
    HomeLock(tmp_path).release()


def test_a_home_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "below"):
        with pytest.raises(UsageError, match=r"cannot be used: .*set MESH_LLM_HOME"):
            HomeLock(home)


@pytest.mark.parametrize(
    "note",
    ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 0, "port": 1, "console": 2}'],
)
def test_a_damaged_note_is_no_daemon(tmp_path: Path, note: str) -> None:
    (tmp_path / pidfile.NOTE).write_text(note)
    assert pidfile.read(tmp_path) is None
    with pytest.raises(NotRunning):
        pidfile.stop(tmp_path, within=1)


def test_the_note_of_another_process_with_our_pid_is_not_believed(tmp_path: Path) -> None:
    told = {"pid": os.getpid(), "started": 1.0, "port": 1, "console": 2}
    (tmp_path / pidfile.NOTE).write_text(json.dumps(told))
    assert pidfile.read(tmp_path) is None


def test_backend_keys_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(tmp_path, backends=(Backend("http://a", "KEY_OF_A"), Backend("http://b")))
    monkeypatch.setenv("KEY_OF_A", "secret")
    assert backend_keys(settings) == {"http://a": "secret"}
    for bad in ("", "two\nlines", "é"):
        monkeypatch.setenv("KEY_OF_A", bad)
        with pytest.raises(UsageError, match="KEY_OF_A"):
            backend_keys(settings)


def test_models_are_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    assert list(find_models(Settings(tmp_path, models=("smollm2-135m-instruct",)))) == ["SmolLM2-135M-Instruct"]
    with pytest.raises(UnknownModel):
        find_models(Settings(tmp_path, models=("no such model",)))
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    with pytest.raises(InvalidModelFile):
        find_models(Settings(tmp_path, models=(str(tmp_path / "bad.gguf"),)))


def test_a_node_that_knows_others_may_ask_them_what_a_name_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    home = tmp_path / "home"
    state = MeshState.open(home)
    with pytest.raises(UnknownModel, match="Qwen3-9B"):
        find_models(Settings(home, models=("Qwen3-9B",)))  # a mesh of one knows no more than this node
    state.save_peers((BootstrapAddress(b"a" * 32, (PeerAddress("192.0.2.1", 9),)),))
    assert find_models(Settings(home, models=("Qwen3-9B",))) == {"Qwen3-9B": None}
    assert "The mesh is asked for it. Did you mean" in caplog.text
    with pytest.raises(UnknownModel, match=r"missing\.gguf"):
        find_models(Settings(home, models=("./missing.gguf",)))  # nobody else can know a path of this machine


def test_what_was_taken_for_a_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    assert list(find_models(Settings(tmp_path, models=("org/some-GGUF:q8_0", "qwen3 8b")))) == ["some-Q8_0", "Qwen3-8B"]
    assert "'qwen3 8b' is taken as Qwen3-8B" in caplog.text


async def test_a_viewer_that_fails_does_not_end_the_daemon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Viewer):
        def listening(self, listening: Listening) -> None:
            # What the daemon does next is to listen for signals; then it hears this one.
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
            raise BrokenPipeError("the terminal is gone")

        def snapshot(self, snapshot: Snapshot) -> None:
            raise AssertionError("nothing more may be shown")

    async with asyncio.timeout(60):
        await App(Settings(tmp_path, port=0, console=0), Broken()).run()
    assert "the terminal is gone" in caplog.text
    assert "nothing more may be shown" not in caplog.text
    assert not (tmp_path / pidfile.NOTE).exists()
