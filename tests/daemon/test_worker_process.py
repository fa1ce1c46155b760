"""What a node does for its leases: a worker's process, its sockets and its files, with a script for rpc-server."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from meshllm.core import events as e
from meshllm.core.memory.devices import Device, MachineMemory
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease, LeasedFile
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.engine_provider import EngineProvider
from meshllm.daemon.memory_ledger import MemoryLedger, PlannedMemory
from meshllm.daemon.start_planner import StartPlanner
from meshllm.daemon.worker_process import ProcessContext, WorkerProcesses
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.sandbox.policy import NO_SANDBOX, Sandboxing
from meshllm.errors import DownloadFailed, EngineUnavailable, MeshError, NotEnoughSpace
from meshllm.models.hub.manifest import Manifest
from meshllm.net.tunnels.rpc_tunnels import RpcTunnels, TunnelUse
from meshllm.util.progress import Progress

HOST, FIRST, LAST = (NodeId(letter * 32) for letter in (b"h", b"f", b"l"))
FILES = (LeasedFile("m.gguf", 5, "ab" * 32),)
LEASE = Lease(
    b"s" * 16, 3, "m", FILES, (WorkerShare(HOST, 0, 1, 1), WorkerShare(FIRST, 1, 1, 1), WorkerShare(LAST, 2, 1, 1))
)
WHICH = (LEASE.session, LEASE.generation)
LISTENS = """
import os, signal, socket, sys
names = [sys.argv[sys.argv.index("--host") + 1], os.environ["GGML_RPC_PUSH"]]
sockets = [socket.socket(socket.AF_UNIX) for _ in names]
for one, name in zip(sockets, names):
    one.bind(name)
    one.listen()
signal.pause()
"""
DIES = "import sys; print('no such device', flush=True); sys.exit(4)"


class Tunnels:
    """Remembers what was to be let in and led out."""

    def __init__(self) -> None:
        self.admitted: dict[TunnelUse, tuple[set[NodeId], Path]] = {}
        self.led: dict[NodeId, tuple[TunnelUse, Path]] = {}
        self.broken: dict[NodeId, Callable[[], None] | None] = {}
        self.revoked: list[tuple[bytes, int]] = []
        self.ahead: list[NodeId] = []

    def preconnect(self, peer: NodeId) -> None:
        self.ahead.append(peer)

    def admit(self, lease: Any, purpose: TunnelUse, peers: Iterable[NodeId], path: Path) -> None:
        self.admitted[purpose] = (set(peers), path)

    async def listen(self, lease: Any, purpose: TunnelUse, peer: NodeId, path: Path, broken: Any = None) -> None:
        self.led[peer], self.broken[peer] = (purpose, path), broken

    def revoke(self, lease: tuple[bytes, int]) -> None:
        self.revoked.append(lease)

    async def close(self) -> None: ...


class Bench:
    """A node that carries, and what it says."""

    def __init__(self, folder: Path, node: NodeId, fetch: Any, sandboxing: Sandboxing) -> None:
        self.tunnels, self.said = Tunnels(), asyncio.Queue[e.Event]()
        self.sockets = folder / "run"
        self.sockets.mkdir(parents=True)
        self.threads = 3
        fitter = cast(StartPlanner, self)
        context = ProcessContext(folder, self.sockets, ChildRegistry(folder / "c"), self.said.put_nowait, sandboxing)
        self.free = 1 << 30
        self.ledger = MemoryLedger(lambda pid: 0)
        self.carrying = WorkerProcesses(context, fetch, fitter, EngineProvider())
        self.carrying.join(cast(RpcTunnels, self.tunnels), node)

    async def refresh_devices(self, engine: Engine) -> None: ...

    def free_memory(self, held: int | None = None) -> int:
        return self.free + (held or 0)

    def worker_memory(self, share: WorkerShare, devices: Sequence[str]) -> PlannedMemory:
        return StartPlanner.worker_memory(cast(StartPlanner, self), share, devices)

    def threads_of(self, sharers: int) -> int | None:
        return self.threads

    def worker_devices(self, share: WorkerShare) -> tuple[str, ...]:
        if len(share.devices) == 3:
            raise NotEnoughSpace("three accelerators were planned for")
        return ("CUDA1", "CUDA3") if share.devices else ("CUDA1",)

    async def until(self, kind: type[e.Event]) -> Any:
        while not isinstance(event := await asyncio.wait_for(self.said.get(), 60), kind):
            pass
        return event


@asynccontextmanager
async def bench(
    folder: Path, fetch: Any, node: NodeId = FIRST, sandboxing: Sandboxing = NO_SANDBOX
) -> AsyncIterator[Bench]:
    made = Bench(folder, node, fetch, sandboxing)
    before = children()  # of a node that other tests use
    try:
        yield made
    finally:
        await made.carrying.close()
        assert list(made.sockets.iterdir()) == []
        assert [child.name() for child in children() if child not in before] == []


def children() -> list[psutil.Process]:
    """All that this process has started, and they in turn."""
    return psutil.Process().children(recursive=True)


async def here(manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
    tell(Progress.at("downloading", 0.5))
    return tuple(Path("/models") / file.name for file in manifest.files)


async def nowhere(manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
    raise DownloadFailed("nobody has it")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the rpc-server be a script of that text."""

    def write(text: str) -> None:
        path = tmp_path / "ggml-rpc-server"
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

        async def ensure(**_: Any) -> Engine:
            return cast(Engine, type("Built", (), {"rpc_server": path}))

        monkeypatch.setattr(builder, "ensure", ensure)

    return write


def child() -> psutil.Process:
    """The process itself, not its guard."""
    ours = [one for one in children() if any(word.endswith("/ggml-rpc-server") for word in one.cmdline())]
    (found,) = [one for one in ours if not one.children()]
    return found


def text(path: str) -> str:
    """What stands in a file."""
    return Path(path).read_text()


async def test_worker_gets_sockets_neighbours_and_files(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    async with bench(tmp_path / "n", here) as it:
        it.carrying.start(LEASE)
        assert (await it.until(e.WorkerProgress)).progress.stage == "downloading"
        assert await it.until(e.WorkerReady) == e.WorkerReady(*WHICH)
        commands, pushes = (it.tunnels.admitted.get(use) for use in TunnelUse)
        assert commands is not None
        assert commands[0] == {HOST}
        assert pushes is None, "there is no worker before it"
        purpose, onward = it.tunnels.led[LAST]
        assert purpose is TunnelUse.TENSORS
        environment, words = child().environ(), child().cmdline()
        assert text(environment["GGML_RPC_FILES"]) == f"{'ab' * 32} 5 /models/m.gguf\n"
        assert environment["GGML_RPC_PEERS"] == f"{LAST.hex()[:32]}={onward}"
        assert words[-4:] == ["--threads", "3", "--device", "CUDA1"]
        assert not {"HF_TOKEN", "MESH_LLM_API_KEY"} & environment.keys()
        it.carrying.stop(WHICH)
        assert await it.until(e.WorkerGone) == e.WorkerGone(*WHICH, "it was stopped")
        assert it.tunnels.revoked == [WHICH]


async def test_worker_without_a_sandbox_starts_no_process(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    async with bench(tmp_path / "n", here, sandboxing=Sandboxing()) as it:
        it.carrying.start(LEASE)
        gone = await it.until(e.WorkerGone)
        assert "it has no sandbox" in gone.reason
        assert not it.tunnels.admitted


async def test_worker_uses_the_planned_accelerators(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    for devices, named in (((1, 0, 2, 0), "CUDA1,CUDA3"), ((), "CUDA1")):
        lease = replace(
            LEASE, shares=(LEASE.shares[0], WorkerShare(FIRST, 1, 3, 1, devices), WorkerShare(LAST, 4, 1, 1))
        )
        async with bench(tmp_path / str(len(devices)), here) as it:
            it.carrying.start(lease)
            await it.until(e.WorkerReady)
            assert child().cmdline()[-2:] == ["--device", named]
            it.carrying.stop(WHICH)
            await it.until(e.WorkerGone)
    odd = replace(LEASE, shares=(LEASE.shares[0], WorkerShare(FIRST, 1, 3, 1, (1, 1, 1)), WorkerShare(LAST, 4, 1, 1)))
    async with bench(tmp_path / "odd", here) as it:
        it.carrying.start(odd)
        assert "three accelerators" in (await it.until(e.WorkerGone)).reason


async def test_last_worker_accepts_tensors_from_the_previous_one(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program(LISTENS)
    async with bench(tmp_path / "n", here, LAST) as it:
        it.carrying.start(LEASE)
        await it.until(e.WorkerReady)
        assert it.tunnels.admitted[TunnelUse.TENSORS][0] == {FIRST}
        assert it.tunnels.led == {}
        assert child().environ()["GGML_RPC_PEERS"] == ""
        it.carrying.stop(WHICH)
        await it.until(e.WorkerGone)


async def test_worker_without_files_serves_layers(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    async with bench(tmp_path / "n", nowhere) as it:
        it.carrying.start(LEASE)
        await it.until(e.WorkerReady)
        assert text(child().environ()["GGML_RPC_FILES"]) == ""
        it.carrying.stop(WHICH)
        await it.until(e.WorkerGone)


async def test_lease_is_in_the_memory_ledger_until_its_end(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    gpus = tuple(Device(name, total=80 << 30, free=70 << 30) for name in ("CUDA1", "CUDA3"))
    machine = MachineMemory(64 << 30, 60 << 30, devices=gpus, used=("CUDA1", "CUDA3"), cap=50 << 30)
    share = WorkerShare(FIRST, 1, 3, 3 << 20, (1, 0, 2, 0))
    lease = replace(LEASE, shares=(LEASE.shares[0], share, WorkerShare(LAST, 4, 1, 1)))
    for end in ("stopped", "killed", "refused"):
        async with bench(tmp_path / end, here) as it:
            it.free = 0 if end == "refused" else 1 << 30
            it.carrying.start(lease)
            if end != "refused":
                await it.until(e.WorkerProgress)
                left = it.ledger.left(machine)
                assert [gpu.free for gpu in left.devices] == [(70 << 30) - (1 << 20), (70 << 30) - (2 << 20)]
                await it.until(e.WorkerReady)
                assert it.ledger.left(machine).planned == 3 << 20
                assert it.ledger.left(machine, leases=False) == machine
                child().kill() if end == "killed" else it.carrying.stop(WHICH)
            await it.until(e.WorkerGone)
            assert it.ledger.left(machine) == machine


async def test_worker_crash_at_start_is_reported_with_its_reason(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program(DIES)
    async with bench(tmp_path / "n", here) as it:
        it.carrying.start(LEASE)
        gone = await it.until(e.WorkerGone)
        assert "its rpc-server exited" in gone.reason
        assert "4" in gone.reason
        assert it.tunnels.admitted == {}, "nobody was let in"


async def test_worker_killed_while_serving_is_reported(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    async with bench(tmp_path / "n", here) as it:
        it.carrying.start(LEASE)
        await it.until(e.WorkerReady)
        child().kill()
        assert "its rpc-server was killed" in (await it.until(e.WorkerGone)).reason
        assert it.tunnels.revoked == [WHICH]


async def test_worker_start_failure_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: list[Exception] = [EngineUnavailable("no compiler", advice="install one"), OSError("disk is full")]

    async def ensure(**_: Any) -> Engine:
        raise faults.pop(0)

    monkeypatch.setattr(builder, "ensure", ensure)
    for number, words in enumerate(("no compiler", "disk is full")):
        async with bench(tmp_path / str(number), here) as it:
            it.carrying.start(LEASE)
            assert words in (await it.until(e.WorkerGone)).reason


async def test_worker_does_not_build_the_engine_again_for_each_proposal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    async def ensure(**_: Any) -> Engine:
        attempts.append(1)
        raise EngineUnavailable("no compiler", advice="install one")

    monkeypatch.setattr(builder, "ensure", ensure)
    async with bench(tmp_path / "n", here) as it:
        for _ in range(3):  # a host asks every few seconds
            it.carrying.start(LEASE)
            assert "no compiler" in (await it.until(e.WorkerGone)).reason
        assert len(attempts) == 1


async def test_stop_cancels_the_download_of_a_lease(tmp_path: Path, program: Callable[[str], None]) -> None:
    program(LISTENS)
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ()

    async with bench(tmp_path / "n", endless) as it:
        it.carrying.start(LEASE)
        await asked.wait()
        it.carrying.stop(WHICH)
        assert await it.until(e.WorkerGone) == e.WorkerGone(*WHICH, "it was stopped")
        assert cancelled.is_set()
        assert not it.carrying.active


async def test_stop_cancels_the_engine_build_of_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building = asyncio.Event()

    async def ensure(**_: Any) -> Engine:
        building.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(builder, "ensure", ensure)
    async with bench(tmp_path / "n", here) as it:
        it.carrying.start(LEASE)
        await building.wait()
        it.carrying.stop(WHICH)
        assert await it.until(e.WorkerGone) == e.WorkerGone(*WHICH, "it was stopped")


async def test_lease_that_is_stopped_before_its_task_begins_ends_too(tmp_path: Path) -> None:
    async with bench(tmp_path / "n", here) as it:
        it.carrying.start(LEASE)
        it.carrying.stop(WHICH)
        assert await it.until(e.WorkerGone) == e.WorkerGone(*WHICH, "it was stopped")


async def test_second_lease_begins_only_after_the_first_has_ended(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program(LISTENS)
    asked, let_end = asyncio.Event(), asyncio.Event()
    begun: list[int] = []

    async def ensure_files(manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        begun.append(1)
        if len(begun) == 1:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                await let_end.wait()  # as a thread that is asked to stop
        return ()

    second = replace(LEASE, generation=LEASE.generation + 1)
    async with bench(tmp_path / "n", ensure_files) as it:
        it.carrying.start(LEASE)
        await asked.wait()
        it.carrying.stop(WHICH)
        it.carrying.start(second)
        await asyncio.wait_for(asyncio.gather(*[asyncio.sleep(0) for _ in range(20)]), 60)
        assert len(begun) == 1
        let_end.set()
        assert await it.until(e.WorkerGone) == e.WorkerGone(*WHICH, "it was stopped")
        assert await it.until(e.WorkerReady) == e.WorkerReady(second.session, second.generation)
        assert len(begun) == 2
        it.carrying.stop((second.session, second.generation))
        await it.until(e.WorkerGone)


async def test_share_that_needs_more_memory_than_is_free_now_is_refused(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program(LISTENS)
    lease = replace(LEASE, shares=(LEASE.shares[0], replace(LEASE.shares[1], memory=10 * 10**9), LEASE.shares[2]))
    async with bench(tmp_path / "n", here) as it:
        it.free = 9 * 10**9
        it.carrying.start(lease)
        assert "need 10.0 GB and 9.0 GB are free now" in (await it.until(e.WorkerGone)).reason
        it.free = 96 * 10**8  # within the tolerance
        it.carrying.start(lease)
        await it.until(e.WorkerReady)
        it.carrying.stop(WHICH)
        await it.until(e.WorkerGone)


async def test_memory_of_a_worker_process_counts_as_held_until_its_lease_ends(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program("ballast = b'x' * (64 << 20)\n" + LISTENS)
    async with bench(tmp_path / "n", here) as it:
        assert it.carrying.held_memory() == 0
        it.carrying.start(LEASE)
        await it.until(e.WorkerReady)
        assert it.carrying.held_memory() > 64 << 20
        it.carrying.stop(WHICH)
        await it.until(e.WorkerGone)
        assert it.carrying.held_memory() == 0


async def test_host_connects_workers_and_reports_broken_tunnels(tmp_path: Path) -> None:
    async with bench(tmp_path / "n", here, HOST) as it:
        reach = await it.carrying.connect_workers(LEASE, (tmp_path / "m.gguf",))
        assert [it.tunnels.led[node] for node in (FIRST, LAST)] == [
            (TunnelUse.COMMANDS, endpoint) for endpoint in reach.endpoints
        ]
        assert reach.environment["GGML_RPC_PEERS"].split(",") == [
            f"{node.hex()[:32]}={path}" for node, path in zip((FIRST, LAST), reach.endpoints, strict=True)
        ]
        (listed,) = (path for path in it.sockets.iterdir() if str(path) == reach.environment["GGML_RPC_FILES"])
        assert stat.S_IMODE(listed.lstat().st_mode) == 0o600
        told = it.tunnels.broken[LAST]
        assert told is not None
        told()
        assert it.said.get_nowait() == e.TunnelBroken(*WHICH, LAST)
        it.carrying.release(LEASE, reach)
        assert it.tunnels.revoked == [WHICH]


async def test_host_preconnects_to_a_worker(tmp_path: Path) -> None:
    async with bench(tmp_path / "n", here, HOST) as it:
        it.carrying.preconnect(FIRST)
        assert it.tunnels.ahead == [FIRST]


async def test_node_without_mesh_has_no_workers(tmp_path: Path) -> None:
    said = list[e.Event]()
    context = ProcessContext(tmp_path, tmp_path, ChildRegistry(tmp_path / "c"), said.append)
    alone = WorkerProcesses(context, here, cast(StartPlanner, None), EngineProvider())
    alone.preconnect(FIRST)
    with pytest.raises((OSError, MeshError), match="no mesh"):
        await alone.connect_workers(LEASE, ())
    await alone.close()


@pytest.mark.parametrize(
    ("host", "size", "fetched"),
    [
        (WorkerShare(HOST, 0, 30, 8 << 30), 10 << 30, True),
        (WorkerShare(HOST, 0, 30, 8 << 30), 14 << 30, False),  # more than all shares together
        (WorkerShare(HOST, 0, 30, 1 << 50), 14 << 30, True),  # its share is small for so many layers, which may be
        (WorkerShare(HOST, 0, 30, 1 << 50), 40 << 30, False),  # the host overstates its memory
        (WorkerShare(HOST, 0, 4000, 1 << 50), 1 << 40, False),  # and its layers
    ],
)
async def test_worker_fetches_no_more_than_its_own_share_allows(
    tmp_path: Path, program: Callable[[str], None], host: WorkerShare, size: int, fetched: bool
) -> None:
    program(LISTENS)
    asked: list[Manifest] = []

    async def fetch(manifest: Manifest, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        asked.append(manifest)
        return await here(manifest, tell)

    own = WorkerShare(FIRST, host.layers, 2, 1 << 30)
    lease = replace(LEASE, files=(LeasedFile("m.gguf", size, "ab" * 32),), shares=(host, own))
    async with bench(tmp_path / "n", fetch) as it:
        it.free = 2 << 30
        it.carrying.start(lease)
        await it.until(e.WorkerReady)  # the host sends the weights instead
        assert bool(asked) is fetched
        it.carrying.stop((lease.session, lease.generation))
        await it.until(e.WorkerGone)
