"""The daemon as a whole: what is checked before it starts, what it survives, how it stops."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from meshllm.core.records import BootstrapAddress, PeerAddress
from meshllm.core.snapshot import Snapshot
from meshllm.daemon import pidfile
from meshllm.daemon.app import App
from meshllm.daemon.change_log import ChangeLog
from meshllm.daemon.draft_stats import DraftStats
from meshllm.daemon.mesh_state import MeshState
from meshllm.daemon.settings import Backend, Settings
from meshllm.daemon.start_wishes import backend_keys, find_models
from meshllm.daemon.viewer import Listening, Viewer
from meshllm.errors import DamagedState, InvalidModelFile, UnknownModel, UsageError


def test_backend_keys_are_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(tmp_path, backends=(Backend("http://a", "KEY_OF_A"), Backend("http://b")))
    monkeypatch.setenv("KEY_OF_A", "secret")
    assert backend_keys(settings) == {"http://a": "secret"}
    for bad in ("", "two\nlines", "é"):
        monkeypatch.setenv("KEY_OF_A", bad)
        with pytest.raises(UsageError, match="KEY_OF_A"):
            backend_keys(settings)


def test_find_models_resolves_names_and_refuses_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    assert list(find_models(Settings(tmp_path, models=("smollm2-135m-instruct",)))) == ["SmolLM2-135M-Instruct"]
    with pytest.raises(UnknownModel):
        find_models(Settings(tmp_path, models=("no such model",)))
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    with pytest.raises(InvalidModelFile):
        find_models(Settings(tmp_path, models=(str(tmp_path / "bad.gguf"),)))


def test_find_models_leaves_unknown_names_to_a_known_mesh(
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


def test_find_models_logs_a_corrected_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    assert list(find_models(Settings(tmp_path, models=("org/some-GGUF:q8_0", "qwen3 8b")))) == ["some-Q8_0", "Qwen3-8B"]
    assert "'qwen3 8b' is taken as Qwen3-8B" in caplog.text


async def test_app_survives_a_viewer_that_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    assert not (tmp_path / pidfile.PID_FILE).exists()


class StopSoon(Viewer):
    """Asks the daemon to stop by a signal, some snapshots after it listens."""

    def __init__(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.number = number
        self.snapshots: list[Snapshot] = []

    def snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        if len(self.snapshots) == 1:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), self.number)


async def test_app_isolates_each_subscriber_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of two subscribers raises at every snapshot: the others still get it, and the daemon stops in order."""

    def broken(name: str) -> Callable[..., None]:
        def publish(self: Any, snapshot: Snapshot) -> None:
            raise KeyError(f"a defect of {name}")

        return publish

    monkeypatch.setattr(DraftStats, "publish", broken("draft stats"))
    monkeypatch.setattr(ChangeLog, "publish", broken("change log"))
    viewer = StopSoon()
    async with asyncio.timeout(60):
        await App(Settings(tmp_path, port=0, console=0), viewer).run()
    assert viewer.snapshots
    for name in ("draft stats", "change log"):
        assert f"snapshot subscriber: {name} failed" in caplog.text
        assert f"a defect of {name}" in caplog.text


async def test_app_stops_in_order_on_sighup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "meshllm")
    async with asyncio.timeout(60):
        await App(Settings(tmp_path, port=0, console=0), StopSoon(signal.SIGHUP)).run()
    stopping = next(record for record in caplog.records if record.message == "stopping")
    assert stopping.fields == {"signal": "SIGHUP"}  # type: ignore[attr-defined]
    assert caplog.records[-1].message == "stopped"
    assert not (tmp_path / pidfile.PID_FILE).exists()


async def test_app_leaves_an_ignored_sighup_ignored(tmp_path: Path) -> None:
    """As `nohup` starts a program."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        class Nohup(StopSoon):
            def snapshot(self, snapshot: Snapshot) -> None:
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
                super().snapshot(snapshot)

        viewer = Nohup()
        async with asyncio.timeout(60):
            await App(Settings(tmp_path, port=0, console=0), viewer).run()
        assert viewer.snapshots
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_app_names_the_file_that_a_full_home_does_not_take(tmp_path: Path) -> None:
    """No write to a file succeeds once the ports are open, as on a disk that is full by then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullHome(StopSoon):
        reasons: ClassVar[list[str]] = []

        def listening(self, listening: Listening) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))

        def no_mesh(self, reason: str) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            self.reasons.append(reason)

    try:
        async with asyncio.timeout(60):
            await App(Settings(tmp_path, port=0, console=0), FullHome()).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (reason,) = FullHome.reasons
    assert reason.startswith(f"{tmp_path}/"), reason
    assert "Free space" in reason


async def test_app_tells_a_node_that_knows_its_mesh_from_a_new_one(tmp_path: Path) -> None:
    class Hints(StopSoon):
        rejoins: ClassVar[list[bool]] = []

        def models_hint(self, *, rejoins: bool) -> None:
            self.rejoins.append(rejoins)

    async with asyncio.timeout(60):
        await App(Settings(tmp_path, port=0, console=0), Hints()).run()
        peer = BootstrapAddress(b"a" * 32, (PeerAddress("192.0.2.1", 9),))
        MeshState.open(tmp_path).save_peers((peer,))
        await App(Settings(tmp_path, port=0, console=0), Hints()).run()
    assert Hints.rejoins == [False, True]


@pytest.mark.parametrize("name", ["api-key", "run", "node-key", "mesh.json"])
async def test_app_names_an_unusable_file_of_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A folder in a file's place, or a file in a folder's, cannot be used by any user, root included."""
    monkeypatch.delenv("MESH_LLM_API_KEY", raising=False)
    bad = tmp_path / name
    if name == "run":
        bad.touch()
    else:
        bad.mkdir()
    async with asyncio.timeout(60):
        with pytest.raises(DamagedState, match=name) as caught:
            await App(Settings(tmp_path, port=0, console=0, listen_all=True), Viewer()).run()
    assert caught.value.advice
    # The home is free again.
    pidfile.HomeLock(tmp_path).release()
