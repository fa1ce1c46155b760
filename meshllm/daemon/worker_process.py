"""This node's hands in splits: what a host needs to reach its workers, and what a worker runs for its host.

Law: everything here belongs to one lease and ends with it: sockets, tunnels, the rpc-server, the list of files it may
read. A worker that cannot have the model's files serves all the same, and what it lacks comes over the wire.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from meshllm.core import events as e
from meshllm.core.records import NodeId
from meshllm.core.split.lease import Lease
from meshllm.daemon.start_planner import StartPlanner
from meshllm.engine.build import builder
from meshllm.engine.processes import rpc_server
from meshllm.engine.processes.child import Child
from meshllm.engine.processes.child_registry import ChildRegistry
from meshllm.engine.processes.rpc_server import SharedFile, WorkerPlan
from meshllm.errors import DownloadFailed, MeshError, NotEnoughSpace
from meshllm.machine import resources
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.net.tunnels.rpc_tunnels import RpcTunnels, TunnelUse
from meshllm.tasks import Owner
from meshllm.util.progress import Progress

log = logging.getLogger(__name__)

Which = tuple[bytes, int]
"""Session and generation of a lease."""

Fetch = Callable[[Manifest, Callable[[Progress], None]], Awaitable[tuple[Path, ...]]]
"""Brings a model's files to this disk, verified, from the mesh. Raises MeshError."""


@dataclass(frozen=True, slots=True)
class WorkerConnections:
    """How a host's engine reaches its workers: a Unix socket for each, in the order of their layers, and what its
    environment must say."""

    endpoints: tuple[Path, ...]
    environment: Mapping[str, str]


class WorkerProcesses:
    """The leases that this node holds, as far as there are processes, sockets and tunnels for them."""

    def __init__(
        self,
        home: Path,
        sockets: Path,
        ledger: ChildRegistry,
        post: Callable[[e.Event], None],
        fetch: Fetch,
        fitter: StartPlanner,
    ) -> None:
        self._home = home
        self._sockets = sockets
        self._ledger = ledger
        self._post = post
        self._fetch = fetch
        self._fitter = fitter
        self._owner = Owner("carrying")
        self._children: dict[Which, Child | None] = {}
        self._ended: set[Which] = set()
        self._tunnels: RpcTunnels | None = None
        self._node = NodeId(b"")

    def join(self, tunnels: RpcTunnels, node: NodeId) -> None:
        """There is a mesh; in it this node is called `node`."""
        self._tunnels, self._node = tunnels, node

    async def close(self) -> None:
        """End everything that still runs."""
        await self._owner.close()
        if self._tunnels is not None:
            await self._tunnels.close()

    # -- as a host

    def preconnect(self, peer: NodeId) -> None:
        """`peer` has been asked to be a worker: what leads to it is made while it makes itself ready."""
        if self._tunnels is not None:
            self._tunnels.preconnect(peer)

    async def connect_workers(self, lease: Lease, files: tuple[Path, ...]) -> WorkerConnections:
        """Have a socket for each worker of `lease`, and the list of the model's files. Raises OSError, MeshError."""
        tunnels = self._mesh()
        endpoints = {}
        for node in lease.members:
            endpoints[node] = self._socket()
            broken = partial(self._post, e.TunnelBroken(lease.session, lease.generation, node))
            which = (lease.session, lease.generation)
            await tunnels.listen(which, TunnelUse.COMMANDS, node, endpoints[node], broken)
        environment = {
            rpc_server.FILES_VARIABLE: str(self._list(lease, files)),
            rpc_server.PEERS_VARIABLE: rpc_server.peers_value({_name(n): path for n, path in endpoints.items()}),
        }
        return WorkerConnections(tuple(endpoints.values()), environment)

    def release(self, lease: Lease, reach: WorkerConnections | None) -> None:
        """Nothing that `connect_workers` made is needed any more."""
        if self._tunnels is not None:
            self._tunnels.revoke((lease.session, lease.generation))
        for path in (*(reach.endpoints if reach is not None else ()), self._list_path(lease)):
            path.unlink(missing_ok=True)

    # -- as a worker

    def start(self, lease: Lease) -> None:
        """Carry this node's share of `lease`; ends in `WorkerGone`."""
        which = (lease.session, lease.generation)
        self._children[which] = None
        self._owner.start(self._carry(lease, which), f"carry {lease.model} {lease.generation}")

    def stop(self, which: Which) -> None:
        """End it."""
        if which not in self._children:
            return
        self._ended.add(which)
        child = self._children[which]
        if child is not None:
            child.stop(at_once=True)  # it holds nothing that would be worth saving

    async def _carry(self, lease: Lease, which: Which) -> None:
        reason = "it was stopped"
        places = [self._socket() for _ in range(3)]
        try:
            reason = await self._run(lease, which, places) or reason
        except (MeshError, OSError) as error:
            reason = str(error)
            log.warning("layers of %s cannot be carried: %s", lease.model, reason)
        except Exception as error:
            log.exception("carrying layers of %s failed", lease.model)
            reason = f"starting the rpc-server failed: {error!r}"
        finally:
            if self._tunnels is not None:
                self._tunnels.revoke(which)
            for path in (*places, self._list_path(lease)):
                path.unlink(missing_ok=True)
            self._children.pop(which, None)
            self._ended.discard(which)
            self._post(e.WorkerGone(*which, reason))

    async def _run(self, lease: Lease, which: Which, places: list[Path]) -> str:
        """Have everything, and live through the process's life. Returns why it ended; empty if it was to."""
        tunnels = self._mesh()

        def tell(progress: Progress) -> None:
            self._post(e.WorkerProgress(*which, progress))

        def built(step: Progress) -> None:
            tell(replace(step, stage=f"engine: {step.stage}"))

        engine = await builder.ensure(progress=built)
        await self._fitter.refresh_devices(engine)
        files = await self._files(lease, tell)
        commands, pushes, onward = places
        share = lease.share(self._node)
        assert share is not None, "a lease that is carried has a share of this node's"
        before, after = _neighbours(lease, self._node)
        peers = {}
        if after is not None:
            await tunnels.listen(which, TunnelUse.TENSORS, after, onward)
            peers[_name(after)] = onward
        plan = WorkerPlan(
            name=lease.model,
            socket=commands,
            pushes=pushes,
            files=self._list(lease, files),
            peers=peers,
            devices=self._fitter.worker_devices(share),
            threads=self._fitter.threads or resources.processors().usable,
        )

        def ready(pid: int) -> None:
            tunnels.admit(which, TunnelUse.COMMANDS, [lease.host], commands)
            if before is not None:
                tunnels.admit(which, TunnelUse.TENSORS, [before], pushes)
            self._post(e.WorkerReady(*which))

        log_file = self._home / "logs" / "rpc-server.log"
        child = Child(rpc_server.child_spec(engine.rpc_server, plan, log_file), self._ledger, ready)
        self._children[which] = child
        if which in self._ended:
            return ""
        ending = await child.run()
        return "" if ending.requested else f"its rpc-server {ending.describe()}"

    async def _files(self, lease: Lease, tell: Callable[[Progress], None]) -> tuple[Path, ...]:
        """The model's files here, fetched from the mesh if need be; none where they cannot be had."""
        files = tuple(ModelFile(file.name, file.size, file.sha256) for file in lease.files)
        try:
            return await self._fetch(Manifest(lease.model, files), tell)
        except (DownloadFailed, NotEnoughSpace) as error:
            log.warning("the weights of %s will come over the wire: %s", lease.model, error)
            return ()

    # -- both

    def _mesh(self) -> RpcTunnels:
        if self._tunnels is None:
            raise OSError("this node is in no mesh")
        return self._tunnels

    def _socket(self) -> Path:
        return self._sockets / f"{secrets.token_hex(6)}.sock"

    def _list_path(self, lease: Lease) -> Path:
        return self._sockets / f"{lease.session.hex()}-{lease.generation}.files"

    def _list(self, lease: Lease, files: tuple[Path, ...]) -> Path:
        path = self._list_path(lease)
        pairs = zip(lease.files, files, strict=False)
        rpc_server.write_files(path, [SharedFile(file.sha256, file.size, place) for file, place in pairs])
        return path


def _neighbours(lease: Lease, own: NodeId) -> tuple[NodeId | None, NodeId | None]:
    """The workers before and after this one."""
    place = lease.members.index(own)
    before = lease.members[place - 1] if place else None
    after = lease.members[place + 1] if place + 1 < len(lease.members) else None
    return before, after


def _name(node: NodeId) -> str:
    """What engines call a node: as many digits as their protocol has room for."""
    return node.hex()[:32]
