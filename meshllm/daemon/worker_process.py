"""The processes of pipeline splits on this node: a worker's rpc-server, and a host's sockets to its workers.

Invariants: one task for each lease; stopping a lease cancels its task, whatever it does; a lease begins only after the
tasks of earlier leases have ended. A worker that cannot get the model's files receives the weights from the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from meshllm.core import events as e
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.daemon.engine_provider import EngineProvider
from meshllm.daemon.memory_ledger import LeaseKey
from meshllm.daemon.start_planner import StartPlanner
from meshllm.engine.processes import llama_server, rpc_server
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.rpc_server import SharedFile, WorkerPlan
from meshllm.engine.sandbox.policy import NO_SANDBOX, WORKER_MARGIN_BYTES, Sandboxing, memory_limit
from meshllm.errors import DownloadFailed, MeshError, NotEnoughSpace
from meshllm.machine import resources
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.net.tunnels.rpc_tunnels import RpcTunnels, TunnelUse
from meshllm.tasks import Owner
from meshllm.util.format import gigabytes
from meshllm.util.progress import Progress

log = logging.getLogger(__name__)

# The planner offers 90 % of the free memory (`core.memory.devices.MEMORY_SHARE`). Memory that fell since the last
# observation may use up half of the other 10 %; a share that needs more is refused.
MEMORY_TOLERANCE = 1.05

# A share is a forecast, within some per cent of what the engine takes; the rpc-server refuses buffers above this.
FORECAST_TOLERANCE = 1.05
# Parts of a file that no share counts: vocabulary, projector layers, alignment.
FILES_MARGIN_BYTES = 1 << 30
LAYERS_DIFFER = 2
# Layers of a model: several times those of the deepest that are known.
DEEPEST_MODEL = 512

STOPPED = "it was stopped"

EnsureFiles = Callable[[Manifest, Callable[[Progress], None]], Awaitable[tuple[Path, ...]]]
"""Brings the files of a model to this disk, verified, from this node or the mesh. Raises MeshError."""


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """What the processes of a daemon share. `home` holds the logs, `sockets` the Unix sockets (mode 0700), `registry`
    the children to end after a crash; `post` takes events for the core; `sandboxing`: how engine processes run."""

    home: Path
    sockets: Path
    registry: ChildRegistry
    post: Callable[[e.Event], None]
    sandboxing: Sandboxing = NO_SANDBOX


@dataclass(frozen=True, slots=True)
class WorkerConnections:
    """How a host's engine reaches its workers: one Unix socket for each, in the order of their layers, and variables
    for the engine's environment."""

    endpoints: tuple[Path, ...]
    environment: Mapping[str, str]


@dataclass(slots=True)
class _WorkerTask:
    """The task of a lease, and its rpc-server once there is one."""

    lease: Lease
    task: asyncio.Task[str]
    child: Child | None = None


class WorkerProcesses:
    """The leases of this node, as far as there are tasks, processes, sockets and tunnels for them."""

    def __init__(
        self, context: ProcessContext, ensure_files: EnsureFiles, planner: StartPlanner, engine: EngineProvider
    ) -> None:
        self._context = context
        self._post = context.post
        self._ensure_files = ensure_files
        self._planner = planner
        self._engine = engine
        self._owner = Owner("worker processes")
        self._tasks: dict[LeaseKey, _WorkerTask] = {}
        self._tunnels: RpcTunnels | None = None
        self._node = NodeId(b"")

    def join(self, tunnels: RpcTunnels, node: NodeId) -> None:
        """This node joined a mesh, as `node`."""
        self._tunnels, self._node = tunnels, node

    async def close(self) -> None:
        """End everything that still runs."""
        await self._owner.close()
        if self._tunnels is not None:
            await self._tunnels.close()

    # -- as a host

    def preconnect(self, peer: NodeId) -> None:
        """Open a tunnel to `peer` while it prepares its share."""
        if self._tunnels is not None:
            self._tunnels.preconnect(peer)

    async def connect_workers(self, lease: Lease, files: tuple[Path, ...]) -> WorkerConnections:
        """Open a socket for each worker of `lease` and write the list of model files. Raises OSError, MeshError."""
        tunnels = self._mesh()
        endpoints: dict[NodeId, Path] = {}
        try:
            for node in lease.members:
                endpoints[node] = self._socket()
                broken = partial(self._post, e.TunnelBroken(lease.session, lease.generation, node))
                await tunnels.listen(_key(lease), TunnelUse.COMMANDS, node, endpoints[node], broken)
        except BaseException:  # also when cancelled: no caller knows these sockets
            for path in endpoints.values():
                path.unlink(missing_ok=True)
            raise
        environment = {
            rpc_server.FILES_VARIABLE: str(self._write_list(lease, files)),
            rpc_server.PEERS_VARIABLE: rpc_server.peers_value({_name(n): path for n, path in endpoints.items()}),
        }
        return WorkerConnections(tuple(endpoints.values()), environment)

    def release(self, lease: Lease, connections: WorkerConnections | None) -> None:
        """Close what `connect_workers` opened."""
        if self._tunnels is not None:
            self._tunnels.revoke(_key(lease))
        for path in (*(connections.endpoints if connections is not None else ()), self._list_path(lease)):
            path.unlink(missing_ok=True)

    # -- as a worker

    def start(self, lease: Lease, sharers: int = 1) -> None:
        """Serve this node's share of `lease`; ends in `WorkerGone`. `sharers`: nodes of it on this machine."""
        earlier = [worker.task for worker in self._tasks.values()]
        task = self._owner.start(self._serve(lease, sharers, earlier), f"worker {lease.model} {lease.generation}")
        self._tasks[_key(lease)] = _WorkerTask(lease, task)
        task.add_done_callback(partial(self._ended, _key(lease)))

    def stop(self, key: LeaseKey, reason: str = "") -> None:
        """Cancel the task of a lease: downloads and builds stop, the rpc-server is killed."""
        worker = self._tasks.get(key)
        if worker is not None:
            log.debug("worker of %s: the lease is over: %s", worker.lease.model, reason or "released")
            worker.task.cancel()

    @property
    def active(self) -> bool:
        """Whether this node serves layers for another one, or prepares to."""
        return bool(self._tasks)

    def pids(self) -> list[int]:
        """The process ids of the rpc-servers."""
        children = [worker.child for worker in list(self._tasks.values())]
        return [child.pid for child in children if child is not None and child.pid]

    def held_memory(self) -> int:
        """Bytes of the computer's memory that the rpc-servers hold: free again as soon as their lease ends."""
        held = 0
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(pid).memory_info()
                # The system counts pages of files as available; so does `shared` (Linux).
                held += max(0, found.rss - int(getattr(found, "shared", 0)))
        return held

    async def _serve(self, lease: Lease, sharers: int, earlier: list[asyncio.Task[str]]) -> str:
        """Serve this node's share of `lease`. Returns why it ended."""
        if refusal := self._context.sandboxing.refusal:
            return refusal
        onward = self._socket()
        try:
            if earlier:
                await asyncio.wait(earlier)  # their memory must be free first
            with llama_server.private_directory(self._context.sockets) as folder:
                return await self._run(lease, sharers, folder, onward)
        except (MeshError, OSError) as error:
            log.warning("worker of %s: cannot serve its layers: %s", lease.model, error)
            return str(error)
        except Exception as error:
            log.exception("worker of %s failed", lease.model)
            return f"starting the rpc-server failed: {error!r}"
        finally:
            if self._tunnels is not None:
                self._tunnels.revoke(_key(lease))
            for path in (onward, self._list_path(lease)):
                path.unlink(missing_ok=True)

    def _ended(self, key: LeaseKey, task: asyncio.Task[str]) -> None:
        """The task of a lease is done. A task that was cancelled may not even have begun."""
        self._tasks.pop(key, None)
        self._planner.ledger.release(key)
        self._post(e.WorkerGone(*key, STOPPED if task.cancelled() else task.result()))

    async def _run(self, lease: Lease, sharers: int, folder: Path, onward: Path) -> str:
        """Prepare the share, then run the rpc-server, whose sockets are in `folder`, to its end. `onward`: the socket
        for the next worker. Returns why it ended."""
        key, tunnels = _key(lease), self._mesh()

        def report(progress: Progress) -> None:
            self._post(e.WorkerProgress(*key, progress))

        engine = await self._engine.ensure_spaced(report)
        await self._planner.refresh_devices(engine)
        share = lease.share(self._node)
        assert share is not None, "the core accepts only leases with a share for this node"
        self._check_memory(share)
        # From now on, as files are downloaded: what this node serves itself is not planned with that memory.
        devices = self._planner.worker_devices(share)
        self._planner.ledger.reserve(key, self._planner.worker_memory(share, devices))
        files = await self._files(lease, report)
        commands, pushes = folder / "c.sock", folder / "p.sock"
        before, after = _neighbours(lease, self._node)
        peers = {}
        if after is not None:
            await tunnels.listen(key, TunnelUse.TENSORS, after, onward)
            peers[_name(after)] = onward
        plan = WorkerPlan(
            name=lease.model,
            socket=commands,
            pushes=pushes,
            files=self._write_list(lease, files),
            peers=peers,
            devices=devices,
            threads=self._planner.threads_of(sharers) or resources.processors().usable,
            models=files,
            memory=memory_limit(share.memory, WORKER_MARGIN_BYTES),
            leased=int(share.memory * FORECAST_TOLERANCE),
        )

        def ready(pid: int) -> None:
            self._planner.ledger.loaded(key)
            tunnels.admit(key, TunnelUse.COMMANDS, [lease.host], commands)
            if before is not None:
                tunnels.admit(key, TunnelUse.TENSORS, [before], pushes)
            self._post(e.WorkerReady(*key))

        log_file = self._context.home / "logs" / "rpc-server.log"
        spec = rpc_server.child_spec(engine.rpc_server, plan, log_file, self._context.sandboxing)
        child = Child(spec, self._context.registry, ready)
        self._tasks[key].child = child
        self._planner.ledger.started(key, lambda: child.pid)
        ending = await child.run()
        return STOPPED if ending.requested else f"its rpc-server {ending.describe()}"

    def _check_memory(self, share: WorkerShare) -> None:
        """Raises NotEnoughSpace if the memory that is free now does not hold `share`."""
        free = self._planner.free_memory()
        if share.memory > free * MEMORY_TOLERANCE:
            raise NotEnoughSpace(
                f"Its layers need {gigabytes(share.memory)} and {gigabytes(free)} are free now.",
                advice="The host plans again with the free memory of all nodes.",
            )

    async def _files(self, lease: Lease, report: Callable[[Progress], None]) -> tuple[Path, ...]:
        """The model's files on this disk, downloaded from the mesh if needed; () if they cannot be had: then the host
        sends the weights."""
        files = tuple(ModelFile(file.name, file.size, file.sha256) for file in lease.files)
        if sum(file.size for file in files) > most_bytes(lease, self._node):
            log.warning("worker of %s: its files are larger than this share allows: none is fetched", lease.model)
            return ()
        try:
            return await self._ensure_files(Manifest(lease.model, files), report)
        except (DownloadFailed, NotEnoughSpace) as error:
            log.warning("worker of %s: no model files, the host sends the weights: %s", lease.model, error)
            return ()

    # -- both

    def _mesh(self) -> RpcTunnels:
        if self._tunnels is None:
            raise OSError("this node is in no mesh")
        return self._tunnels

    def _socket(self) -> Path:
        return self._context.sockets / f"{secrets.token_hex(6)}.sock"

    def _list_path(self, lease: Lease) -> Path:
        return self._context.sockets / f"{lease.session.hex()}-{lease.generation}.files"

    def _write_list(self, lease: Lease, files: tuple[Path, ...]) -> Path:
        path = self._list_path(lease)
        pairs = zip(lease.files, files, strict=False)
        rpc_server.write_files(path, [SharedFile(file.sha256, file.size, place) for file, place in pairs])
        return path


def most_bytes(lease: Lease, worker: NodeId) -> int:
    """The most bytes of files that `worker` fetches for a lease: what the shares say, but no more than the worker's own
    share, which it offered, allows for a model of so many layers. The other shares are only what the host says."""
    own = lease.share(worker)
    assert own is not None, "the core accepts only leases with a share for this node"
    layers = min(DEEPEST_MODEL, sum(share.layers for share in lease.shares))
    # Layers differ, in mixtures of experts for example: the bound leaves room for twice the mean.
    by_layers = LAYERS_DIFFER * own.memory * layers // own.layers
    return min(sum(share.memory for share in lease.shares) * 5 // 4, by_layers) + FILES_MARGIN_BYTES


def _key(lease: Lease) -> LeaseKey:
    return lease.session, lease.generation


def _neighbours(lease: Lease, own: NodeId) -> tuple[NodeId | None, NodeId | None]:
    """The workers before and after this one."""
    index = lease.members.index(own)
    before = lease.members[index - 1] if index else None
    after = lease.members[index + 1] if index + 1 < len(lease.members) else None
    return before, after


def _name(node: NodeId) -> str:
    """The name of a node in the engines' protocol, which has room for 32 hexadecimal digits."""
    return node.hex()[:32]
